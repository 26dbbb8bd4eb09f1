"""Every command that pays a model: what each needs to start, and what makes it other work.

The commands run in a working folder that `furnished` fills, so that a door is a line of words.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.main import app
from tests.conftest import KEY_VARIABLE
from tests.plugins.evaluate.alpaca_eval.conftest import outputs
from tests.support.command_line import REFED, accept_ctrl_c
from tests.support.judged_pairs import judged_pairs, lines_of, without_grades
from tests.support.scripted_engine import references
from tests.support.toy_arena_hard import make_clone, write_answers

PRICE = {"prompt": 0.1, "completion": 10.0}
PEOPLE = without_grades(judged_pairs(18, 4))


@dataclass(frozen=True)
class Door:
    """`words` start the work in the folder `out`; with `other` instead of one of them it is other work."""

    name: str
    words: str
    other: tuple[str, str]
    verdicts: tuple[str, ...] = ()
    """What a judge that answers with one token says."""
    estimated: bool = False
    """A cap that cannot hold the work is refused, until an estimate was asked for."""

    def start(self, *more: object) -> Result:
        """The command in this process."""
        return CliRunner().invoke(app, [*self.words.split(), *(str(word) for word in more)])

    def start_capped(self, *cap: object) -> Result:
        """The command in this process, for the first time, with a cap that is too small for all of its work."""
        if self.estimated:
            assert self.start("--estimate").exit_code == 0
        return self.start(*cap)

    def started(self) -> subprocess.Popen[str]:
        """The command in a process of its own."""
        return subprocess.Popen(
            [*REFED, *self.words.split()], stderr=subprocess.PIPE, text=True, preexec_fn=accept_ctrl_c
        )

    def otherwise(self) -> Door:
        return replace(self, words=self.words.replace(*self.other))


DOORS = [
    Door(
        "synth",
        "synth --references references.jsonl --teacher teacher.yaml --size 8 --seed 1 --run-dir out",
        ("--seed 1", "--seed 5"),
    ),
    Door(
        "synth-filtered",
        "synth --references references.jsonl --teacher teacher.yaml --judge judge.yaml --size 4 --run-dir out"
        " --config filters.yaml",
        ("filters.yaml", "others.yaml"),
    ),
    Door(
        "filter",
        "filter pairs.jsonl --judge judge.yaml --config filters.yaml --out out",
        ("pairs.jsonl", "references.jsonl"),
    ),
    Door(
        "recycle",
        "recycle references.jsonl --teacher teacher.yaml --config recycle.yaml --out out",
        ("references.jsonl", "fewer.jsonl"),
    ),
    Door(
        "compare",
        "compare --references references.jsonl --teacher teacher.yaml --judge judge.yaml --config compare.yaml"
        " --against b --seed 1 --out out",
        ("--seed 1", "--seed 5"),
    ),
    Door(
        "compile",
        "compile --references references.jsonl --teacher teacher.yaml --judge judge.yaml --config compile.yaml"
        " --no-prove --seed 1 --out out",
        ("--seed 1", "--seed 5"),
        estimated=True,
    ),
    Door(
        "stats",
        "stats pairs.jsonl --judge judge.yaml --config plain.yaml --out out",
        ("pairs.jsonl", "fewer.jsonl"),
    ),
    Door(
        "agreement",
        "judge agreement --pairs people.jsonl --judge judge.yaml --count 12 --seed 1 --out out",
        ("--seed 1", "--seed 5"),
    ),
    Door(
        "train",
        "judge train --pairs people.jsonl --judge judge.yaml --out out",
        ("judge.yaml", "teacher.yaml"),
    ),
    Door(
        "answers",
        "evaluate answers --prompts prompts.jsonl --model brief.yaml --system Briefly. --out out",
        ("Briefly.", "Calmly."),
    ),
    Door(
        "alpaca-eval",
        "evaluate alpaca-eval --outputs mine.json --baseline theirs.json --judge brief.yaml --out out"
        " --environment alpaca",
        ("brief.yaml", "judge.yaml"),
        verdicts=("m", "M"),
    ),
    Door(
        "arena-hard",
        "evaluate arena-hard --answers short.jsonl --clone clone --judge brief.yaml --out out --environment arena",
        ("brief.yaml", "judge.yaml"),
        verdicts=("[[A>B]]", "[[B>A]]", "[[A=B]]"),
    ),
]


def furnished(home: Path, server: SimulatedTeacher, toys: dict[str, Path]) -> None:
    """Fill `home` with what the doors' words name. The models are at `server`, which asks for a key."""

    def jsonl(name: str, rows: list[dict[str, Any]]) -> None:
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    settings: dict[str, Any] = {
        "api_base": server.base_url, "api_key_env": KEY_VARIABLE, "concurrency": 4, "retries": 0,
        "temperature": 0.0, "max_tokens": 160, "price": PRICE,
    }  # fmt: skip
    files: dict[str, Any] = {
        "teacher.yaml": {"model": "sim/sim-model", **settings},
        "judge.yaml": {"model": "sim/other-model", **settings, "max_tokens": 64},
        "brief.yaml": {"model": "sim/brief", **settings, "max_tokens": 16},
        "plain.yaml": {"columns": {"plain": "before"}},
        "filters.yaml": {"filters": [{"rubric": {"at_least": 2}}]},
        "others.yaml": {"filters": [{"length": {"min_words": 1}}]},
        "recycle.yaml": {"embeddings": False, "size": 6},
        "compare.yaml": {
            "programs": {"a": "seed-only", "b": "instruction-only"}, "against": "b", "size": 4, "embeddings": False,
        },
        "compile.yaml": {
            "optimizer": "bootstrap", "train": 2, "validation": 2, "test": 5, "evaluations": 4,
            "instructions_per_feature": 1, "features": {"topic": "What it is about."},
        },
    }  # fmt: skip
    for name, content in files.items():
        (home / name).write_text(yaml.safe_dump(content), "utf-8")
    rows = references(12)
    jsonl("references.jsonl", rows)
    jsonl("pairs.jsonl", [{**row, "before": f"A first draft of {n}."} for n, row in enumerate(rows)])
    jsonl("fewer.jsonl", [{**row, "before": "A first draft."} for row in rows[:11]])
    jsonl("prompts.jsonl", [{"uid": f"u{n}", "prompt": f"Name fish {n}."} for n in range(12)])
    (home / "people.jsonl").write_text(lines_of(PEOPLE), "utf-8")
    for name in ("mine", "theirs"):
        (home / f"{name}.json").write_text(json.dumps(outputs(name, 40)), "utf-8")
    make_clone(home / "clone", 20)
    write_answers(home / "short.jsonl", 20, words=2)
    for name, environment in toys.items():
        (home / name).symlink_to(environment)
