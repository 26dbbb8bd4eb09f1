"""A model that refuses every call ends the work after twenty of them, with its own words, in whichever role and
command; and what it did not decide is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from benchmarks.wires import UNFIT
from tests.cli import test_compile
from tests.support.command_line import refed
from tests.support.said import Said
from tests.support.scripted_engine import references

CONCURRENCY = 4
WELL, FAILING = "well.yaml", "failing.yaml"
REFERENCES = ("--references", "references.jsonl")
RUN = ("synth", *REFERENCES, "--run-dir", "out", "--size", 40)
COMPARE = ("compare", *REFERENCES, "--out", "out")
COMMANDS: dict[str, tuple[object, ...]] = {
    "synth": (*RUN, "--teacher", FAILING),
    "synth: judge": (*RUN, "--teacher", WELL, "--judge", FAILING, "--config", "judged.yaml"),
    "compile: judge": ("compile", "--teacher", WELL, "--judge", FAILING),
    "compile: teacher": ("compile", "--teacher", FAILING, "--judge", WELL),
    "compile: reflection": ("compile", "--teacher", WELL, "--reflection", FAILING),
    "agreement": ("judge", "agreement", "--pairs", "pairs.jsonl", "--out", "out", "--judge", FAILING),
    "filter": ("filter", "rows.jsonl", "--config", "judged.yaml", "--out", "out", "--judge", FAILING),
    "compare: judge": (*COMPARE, "--teacher", WELL, "--judge", FAILING),
    "compare: teacher": (*COMPARE, "--teacher", FAILING, "--judge", WELL),
    "recycle": ("recycle", "rows.jsonl", "--out", "out", "--teacher", FAILING),
    "stats": ("stats", "rows.jsonl", "--config", "plain.yaml", "--judge", FAILING, "--out", "out"),
}  # fmt: skip
COMPILE = (*REFERENCES, "--config", "compile.yaml", "--out", "out")
SETS = {"train": 10, "validation": 10, "test": 10, "instructions_per_feature": 1}
Servers = tuple[SimulatedTeacher, SimulatedTeacher]


@pytest.fixture
def files(tmp_path: Path, two: Servers, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder for every command: a model that is well, and one at the second endpoint."""
    monkeypatch.setenv("REFED_EMBEDDINGS", "false")
    rows = [{"instruction": f"Say {i}.", "response": f"Word {i} at length.", "first": f"Word {i}."} for i in range(60)]
    texts = {
        "references.jsonl": "".join(json.dumps(row) + "\n" for row in references(30)),
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "pairs.jsonl": "".join(json.dumps(row) + "\n" for row in test_compile.pairs(60)),
        "plain.yaml": "columns: {plain: first}\n",
        "judged.yaml": "filters: [{rubric: {at_least: 3}}]\n",
        "compile.yaml": json.dumps({"optimizer": "gepa", "evaluations": 60, **SETS}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    for name, server in zip((WELL, FAILING), two, strict=True):
        model: dict[str, Any] = {"model": f"sim/{name}", "api_base": server.base_url, "retries": 0, "max_tokens": 512}
        (tmp_path / name).write_text(json.dumps({**model, "concurrency": CONCURRENCY}))
    return tmp_path


def test_a_refused_key_is_bad_input_in_a_check_and_a_preview(said: Said, home: Path, files: Path, two: Servers) -> None:
    two[1].control(auth_fails_after=0)
    preview = ("synth", "--preview", "--sample", "--teacher", FAILING)
    done = [refed(*words) for words in (("teacher", "check", FAILING), preview)]
    assert [each.exit_code for each in done] == [2, 2]
    said([each.stderr.splitlines()[-1] for each in done])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name.startswith("compile") else []) for name in COMMANDS]
)
def test_a_model_that_refuses_every_call_ends_the_work(name: str, home: Path, files: Path, two: Servers) -> None:
    assert home == files
    two[1].control(faults={"400": 1.0})
    words = COMMANDS[name]
    done = refed(*words, *(COMPILE if words[0] == "compile" else ()))
    assert done.exit_code == (1 if two[0].stats()["requests"] else 2), "2 where nothing was paid"
    asked = two[1].stats()["requests"]
    # GEPA alone gives up before twenty failed proposals; an example whose first question failed asks no other one.
    assert (1 if "reflection" in name else 10 if "compile" in name else 20) <= asked <= 20 + CONCURRENCY, done.output
    assert UNFIT in done.stderr and "Traceback" not in done.output
    assert done.stderr.splitlines()[-1].startswith("refed: "), done.stderr
