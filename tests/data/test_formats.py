"""Formats of trainers: pairs of improved and plain responses, and what is left out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refed_dspy.data.export import export
from refed_dspy.errors import ExportError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import DecisionRow, decided, sampled
from refed_dspy.records import Reference, Sample
from tests.support.row_files import rows_in
from tests.support.said import Said
from tests.support.scripted_engine import SAMPLE_FIELDS

PAIRS = [("plain one", "a better one"), ("same", "same "), ("plain three", "three, better"), ("four", "four, perhaps")]


def run(folder: Path, margins: dict[int, float], **meta: Any) -> Path:
    """A run with a sample for each of PAIRS, and what a judge preferred them by, by number."""
    with Ledger.create(folder) as ledger:
        ledger.begin([Reference(instruction="Q", response="A", source="a")], teacher={"model": "m"}, **meta)
        added = ledger.commit_proposal(0, "tone", 0, [f"Task {i}" for i in range(len(PAIRS))], 0, frozenset())
        for (number, text), (plain, improved) in zip(added.new, PAIRS, strict=True):
            fields = {**SAMPLE_FIELDS, "instruction": text, "response": plain, "improved_response": improved}
            ledger.commit(sampled(number, 0, Sample.model_validate(fields)))
            if number in margins:
                ledger.commit(decided(number, [DecisionRow("judge", 0, True, margins[number], "", "")]))
    return folder


def text(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


TASK = {"prompt": text("user", "Task 0")}
PLAIN, BETTER = (text("assistant", each) for each in PAIRS[0])


def test_pairs_are_improved_and_plain_where_they_differ(said: Said, tmp_path: Path) -> None:
    made = export(run(tmp_path / "run", {1: 2.0}), "preference", tmp_path / "pairs.jsonl")
    rows = rows_in(tmp_path / "pairs.jsonl")
    assert rows[0] == {**TASK, "chosen": BETTER, "rejected": PLAIN, "margin": 2.0}
    assert [row["margin"] for row in rows] == [2.0, 0.0, 0.0] and made.count == 3
    said(made.told)


def test_kto_has_both_texts_of_a_pair_and_completions_the_improved_one(said: Said, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", {})
    made = export(folder, "kto", tmp_path / "kto.jsonl")
    rows = rows_in(tmp_path / "kto.jsonl")
    assert made.count == 3 and len(rows) == 6
    assert rows[:2] == [{**TASK, "completion": BETTER, "label": True}, {**TASK, "completion": PLAIN, "label": False}]
    said(made.told)
    assert export(folder, "prompt-completion", tmp_path / "sft.jsonl").count == len(PAIRS)
    assert rows_in(tmp_path / "sft.jsonl")[0] == {**TASK, "completion": BETTER}


@pytest.mark.parametrize("format_", ["preference", "kto"])
def test_a_run_that_improves_nothing_has_no_pairs(said: Said, tmp_path: Path, format_: str) -> None:
    folder = run(tmp_path / "run", {}, final_stage="response_generation")
    with said.by(ExportError):
        export(folder, format_, tmp_path / "pairs.jsonl")
    assert not (tmp_path / "pairs.jsonl").exists()


def test_where_every_pair_is_left_out_nothing_is_written(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.PAIRS", [("same", "same ")])
    with said.by(ExportError):
        export(run(tmp_path / "run", {}), "preference", tmp_path / "pairs.jsonl")
    assert not (tmp_path / "pairs.jsonl").exists()
