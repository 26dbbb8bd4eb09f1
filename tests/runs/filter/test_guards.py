"""Guards over data sets: whose references they compare with, and what they tell where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refed_dspy import filter_data
from refed_dspy.errors import InputError
from refed_dspy.records import Reference
from tests.runs.test_guards import COPY, REFERENCES, Teacher, run
from tests.support.said import Said

GUARDS = ["instruction_guard", "response_guard"]


def reasons(made: Any) -> list[str]:
    return [row["refed_filters"]["reason"] for row in made.dropped()]


def test_the_rows_of_a_run_know_their_references(said: Said, tmp_path: Path) -> None:
    bad = Teacher(
        lambda name, task, asked: COPY if (name, task) in {("response", 2), ("improved_response", 4)} else None
    )
    run(tmp_path / "run", bad, guards=False)
    made = filter_data(tmp_path / "run", GUARDS, out=tmp_path / "out")
    said(reasons(made))
    assert [entry["remarks"] for entry in made.funnel()] == [{}, {}]


def test_without_references_it_is_told_that_nothing_was_compared(said: Said, tmp_path: Path) -> None:
    rows = [
        {"instruction": REFERENCES[0]["instruction"], "response": "a b", "improved_response": "a b"},
        {"instruction": "Name a fruit.", "response": "a b", "improved_response": f"a b {COPY}"},
    ]
    made = filter_data(rows, GUARDS, out=tmp_path / "none")
    assert not reasons(made)
    said(made.lines()[3:5])
    (tmp_path / "references.jsonl").write_text("\n".join(map(json.dumps, REFERENCES)))
    given = {"references": str(tmp_path / "references.jsonl")}
    made = filter_data(rows, [{name: given} for name in GUARDS], out=tmp_path / "given")
    said(reasons(made))
    ids = [Reference(**reference).id for reference in REFERENCES]
    named = [{**rows[1], "improved_response": f"{COPY[:-30]} {n}", "reference": ids[n]} for n in (0, 1)]
    said(reasons(filter_data(named, [{"response_guard": given}], out=tmp_path / "named")))


def test_a_bad_file_of_references_is_one_line(said: Said, tmp_path: Path) -> None:
    with said.by(InputError):
        filter_data([{"instruction": "a", "response": "b"}], [{"response_guard": {"references": "nowhere.jsonl"}}])
