"""Guards over data sets: whose references they compare with, and what they tell where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refed_dspy import filter_data
from refed_dspy.errors import InputError
from refed_dspy.records import Reference
from tests.runs.test_guards import COPY, REFERENCES, Teacher, run

GUARDS = ["instruction_guard", "response_guard"]


def reasons(made: Any) -> list[str]:
    return [row["refed_filters"]["reason"] for row in made.dropped()]


def test_the_rows_of_a_run_know_their_references(tmp_path: Path) -> None:
    bad = Teacher(
        lambda name, task, asked: COPY if (name, task) in {("response", 2), ("improved_response", 4)} else None
    )
    run(tmp_path / "run", bad, guards=False)
    made = filter_data(tmp_path / "run", GUARDS, out=tmp_path / "out")
    assert reasons(made) == ["copies its reference"] * 2
    assert [entry["remarks"] for entry in made.funnel()] == [{}, {}]


def test_without_references_it_is_told_that_nothing_was_compared(tmp_path: Path) -> None:
    rows = [
        {"instruction": REFERENCES[0]["instruction"], "response": "a b", "improved_response": "a b"},
        {"instruction": "Name a fruit.", "response": "a b", "improved_response": f"a b {COPY}"},
    ]
    made = filter_data(rows, GUARDS, out=tmp_path / "none")
    assert not reasons(made)
    assert made.lines()[3:5] == [
        "instruction_guard: of the kept, 2 no reference to compare with",
        "response_guard: of the kept, 2 no reference to compare with, 1 unchanged",
    ]
    (tmp_path / "references.jsonl").write_text("\n".join(map(json.dumps, REFERENCES)))
    given = {"references": str(tmp_path / "references.jsonl")}
    made = filter_data(rows, [{name: given} for name in GUARDS], out=tmp_path / "given")
    assert reasons(made) == ["repeats its reference", "copies its reference"]
    ids = [Reference(**reference).id for reference in REFERENCES]
    named = [{**rows[1], "improved_response": f"{COPY[:-30]} {n}", "reference": ids[n]} for n in (0, 1)]
    assert (
        reasons(filter_data(named, [{"response_guard": given}], out=tmp_path / "named")) == ["copies its reference"] * 2
    )


def test_a_bad_file_of_references_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: no such file"):
        filter_data([{"instruction": "a", "response": "b"}], [{"response_guard": {"references": "nowhere.jsonl"}}])
