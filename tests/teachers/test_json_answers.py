"""Verdicts of a judge behind a real HTTP endpoint. Where a schema has a choice the client hands over a value and no
text: read as text it is empty, and every verdict is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.data.rows import dropped_rows
from refed_dspy.filters.judge import ABSTAINED
from refed_dspy.ledger.ledger import Ledger
from tests.support.compiling import compiled, without_words  # noqa: F401 — DSPy logs each example that fails
from tests.support.compiling import config as of_compile
from tests.support.scripted_engine import references
from tests.teachers.test_routes import WIRES, any_key, config

__all__ = ["any_key"]  # a fixture

GRADES = {"A>>B", "A>B", "A=B", "B>A", "B>>A", "cannot tell"}


def verdicts(folder: Path) -> list[str]:
    """The judge's verdicts, as the ledger keeps them."""
    with Ledger.read(folder) as ledger:
        rows = ledger.db.execute("SELECT output FROM answers WHERE stage LIKE '%judge'").fetchall()
    return [json.loads(output)["verdict"] for (output,) in rows]


@pytest.mark.usefixtures("any_key")
@pytest.mark.parametrize("wire", [*WIRES, "caller's"])
def test_a_judge_decides_pairs_over_http(server: SimulatedTeacher, tmp_path: Path, wire: str) -> None:
    judge: Any
    if wire == "caller's":
        # A model that DSPy knows to take a schema: without one there is no choice in it, and plain text comes back.
        judge = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="sk-any", cache=False)
    else:
        judge = config(server, wire)
    rows = [{"instruction": f"Say {i}.", "response": f"Word {i} at length.", "plain": f"Word {i}."} for i in range(15)]
    made = refed_dspy.filter_data(rows, ["judge"], judge=judge, out=tmp_path / "out", columns={"plain": "plain"})
    found = verdicts(tmp_path / "out")
    assert len(found) == 30 and set(found) <= GRADES and len(set(found)) >= 4, "all kinds of verdicts came through"
    (step,) = made.funnel()
    decided = step["in"] - step["reasons"].get(ABSTAINED, 0)
    assert decided >= 8, "a sixth of what the server says is that it cannot tell, and nothing else abstains"


@pytest.mark.slow
def test_a_runs_filter_gets_verdicts_over_http(server: SimulatedTeacher, tmp_path: Path) -> None:
    teacher = TeacherConfig.model_validate({"model": "sim/sim-model", "api_base": server.base_url, "concurrency": 4})
    other = teacher.model_copy(update={"model": "sim/other-model"})
    made = refed_dspy.synthesize(
        None, references(12), size=2, teacher=teacher, judge=other, filters=["judge"], run_dir=tmp_path / "run"
    )
    assert made.complete and all(verdict in GRADES for verdict in verdicts(tmp_path / "run"))
    with Ledger.read(tmp_path / "run") as ledger:
        kept = ledger.db.execute("SELECT score FROM decisions WHERE kept AND filter = 'judge'").fetchall()
        scored = [row for row in dropped_rows(ledger) if row["score"] is not None]
    assert len(kept) == 2 and all(score > 0 for (score,) in kept)
    assert scored and all(row["score"] <= 0 for row in scored)


@pytest.mark.slow
def test_a_compile_gets_verdicts_through_its_ledger(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(response_words=8, items=1)
    models = {"teacher": of_compile(server), "judge": of_compile(server, model="openai/judge")}
    made = compiled(
        None, None, tmp_path / "out", "bootstrap", evaluations=1, options={"max_bootstrapped_demos": 1}, **models
    )
    with Ledger.read(tmp_path / "out") as ledger:
        outputs = [text for (text,) in ledger.db.execute("SELECT output FROM answers WHERE output LIKE '%verdict%'")]
    assert outputs and made is not None
    recorded_verdicts = [
        word for word in GRADES if any(f'"{word}"' in text or f'\\"{word}\\"' in text for text in outputs)
    ]
    assert len(recorded_verdicts) >= 2, "the ledger keeps each verdict as text that is read again"
