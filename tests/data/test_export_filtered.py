"""The rows of filterings and recyclings in every format, and as a source of further work."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

import refed_dspy
from refed_dspy.data.dataset import load_dataset
from refed_dspy.data.export import FORMATS, PAIRED, export, export_dropped
from refed_dspy.errors import ExportError, RunDirError
from tests.runs.filter.helpers import PAIRS, WON, NumberJudge, filtered
from tests.support.row_files import rows_in
from tests.support.said import Said

QUESTIONS = [
    {
        "q": f"Question {n}?",
        "a": "yes " * n,
        "system": "Be short.",
        "reasoning": "Hm.",
        "n": n,
        "mixed": [n, "1"][n % 2],
    }
    for n in range(1, 6)
]


def test_rows_with_columns_of_other_names_in_every_format(said: Said, tmp_path: Path) -> None:
    columns = {"instruction": "q", "response": "a"}
    made = refed_dspy.filter_data(QUESTIONS, [{"length": {"min_words": 3}}], columns=columns, out=tmp_path / "kept")
    for format_ in FORMATS:
        if format_ in PAIRED:
            with said.by(ExportError):
                export(made.out, format_, tmp_path / format_)
        else:
            assert export(made.out, format_, tmp_path / format_).count == 3
    assert rows_in(tmp_path / "jsonl") == list(made)
    first = QUESTIONS[2]
    assert rows_in(tmp_path / "alpaca")[0] == {
        "instruction": first["q"], "input": "", "output": str(first["a"]).strip(), "system": first["system"],
    }  # fmt: skip
    assert "reasoning_content" not in (tmp_path / "messages").read_text()
    told = export(made.out, "messages", tmp_path / "thoughts", reasoning=True).told
    assert "reasoning_content" in (tmp_path / "thoughts").read_text()
    said(told)
    table = pq.read_table(tmp_path / "parquet").to_pylist()
    assert [(row["n"], row["mixed"]) for row in table] == [(3, "1"), (4, "4"), (5, "1")]
    assert json.loads(table[0]["refed_filters"]) == {"row": 3, "scores": {"length": 3}}
    assert [row.instruction for row in load_dataset(made.out).rows] == [row["q"] for row in QUESTIONS[2:]]


def test_pairs_have_the_judges_margin_also_after_another_filter(tmp_path: Path) -> None:
    filtered(tmp_path / "judged", ["judge"], judge=NumberJudge())
    again = filtered(tmp_path / "again", ["refusals"], tmp_path / "judged")
    assert len(again) == len(WON) and again.export("preference", tmp_path / "pairs.jsonl") == len(WON)
    pairs = rows_in(tmp_path / "pairs.jsonl")
    assert {pair["margin"] for pair in pairs} == {1.0, 2.0}
    assert pairs[0]["rejected"][0]["content"] == PAIRS[WON[0] - 1]["response"]


def test_recycled_rows_make_pairs_where_the_instruction_stayed(tmp_path: Path) -> None:
    rows = [
        {"instruction": "i", "response": "new", "original_instruction": "i", "original_response": "old"},
        {"instruction": "j2", "response": "new", "original_instruction": "j", "original_response": "old"},
    ]
    made = refed_dspy.filter_data(rows, ["refusals"], out=tmp_path / "kept")
    assert made.export("preference", tmp_path / "pairs.jsonl") == 1
    assert rows_in(tmp_path / "pairs.jsonl")[0]["rejected"] == [{"role": "assistant", "content": "old"}]


def test_dropped_rows_and_what_cannot_be_exported(said: Said, tmp_path: Path) -> None:
    made = filtered(tmp_path / "kept", [{"length": {"min_words": 99}}])
    assert export_dropped(made.out, tmp_path / "dropped.jsonl") == len(PAIRS)
    assert rows_in(tmp_path / "dropped.jsonl") == list(made.dropped())
    with said.by(ExportError):
        export(made.out, "jsonl", tmp_path / "none.jsonl")
    with said.by(ExportError):
        export_dropped(made.out, tmp_path / "dropped.jsonl")
    (made.out / "kept.jsonl").write_text("{broken")
    with said.by(RunDirError):
        export(made.out, "jsonl", tmp_path / "none.jsonl")
    with said.by(RunDirError):
        export(tmp_path / "nowhere", "jsonl", tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
