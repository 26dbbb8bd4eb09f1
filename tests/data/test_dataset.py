"""Reading data sets: which text is which, what is left out, and the messages about what cannot be read."""

from __future__ import annotations

import csv
import datetime
import json
import random
from pathlib import Path
from typing import Any

import dspy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import refed_dspy
from refed_dspy.data.dataset import drawn, load_dataset
from refed_dspy.errors import ConfigError, InputError, ReferencesError, RunDirError
from refed_dspy.records import Reference
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

ROWS: list[dict[str, Any]] = [
    {
        "instruction": "Sag „Grüß Gott“ auf 日本語.",
        "response": "こんにちは",
        "tags": ["a", None],
        "nested": {"n": [1, 2]},
    },
    {"instruction": "Count.", "response": "1\n2\n3", "tags": None, "nested": None},
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` in the file's own kind."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
def test_every_kind_of_file_gives_the_same_texts(tmp_path: Path, kind: str) -> None:
    rows = [{"instruction": row["instruction"], "response": row["response"]} for row in ROWS]
    loaded = load_dataset(written(tmp_path / f"d.{kind}", rows))
    assert [(row.number, row.instruction, row.response) for row in loaded.rows] == [
        (at, row["instruction"], row["response"]) for at, row in enumerate(rows, start=1)
    ]
    assert [dict(row.fields) for row in loaded.rows] == rows
    assert not loaded.left_out and not loaded.has_plain


def test_fields_stay_as_they_stood(tmp_path: Path) -> None:
    rows = [{**row, "day": datetime.date(2024, 2, 29)} for row in ROWS]
    assert [dict(row.fields) for row in load_dataset(rows).rows] == rows
    kept = [row.fields for row in load_dataset(written(tmp_path / "d.parquet", rows)).rows]
    assert kept[0]["day"] == datetime.date(2024, 2, 29) and kept[0]["tags"] == ["a", None]


def test_a_list_is_not_changed_and_may_hold_references_and_examples() -> None:
    source = [dict(ROWS[0])]
    first = load_dataset(source).rows[0]
    assert source == [ROWS[0]] and first.fields is not source[0]
    mixed: list[Any] = [Reference(instruction="a", response="b"), dspy.Example(instruction="c", response="d")]
    assert [row.response for row in load_dataset(mixed).rows] == ["b", "d"]
    assert [row.response for row in load_dataset(iter(mixed)).rows] == ["b", "d"], "what can be read only once"


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"improved_response": "better", "response": "first", "instruction": "i"}, {}, ("i", "better", "first")),
        (
            {"improved_response": "better", "response": "first", "q": "i"},
            {"instruction": "q"},
            ("i", "better", "first"),
        ),
        (
            {"improved_response": "better", "old": "first", "instruction": "i"},
            {"plain": "old"},
            ("i", "better", "first"),
        ),
        ({"improved_response": "b", "response": "f", "instruction": "i", "input": "x"}, {}, ("i\n\nx", "b", "f")),
        ({"improved_response": None, "response": "first", "instruction": "i"}, {}, ("i", "first", None)),
        ({"response": "r", "instruction": "i", "old": " o "}, {"plain": "old"}, ("i", "r", "o")),
        ({"response": "r", "instruction": "i", "old": None}, {"plain": "old"}, ("i", "r", None)),
        ({"improved_response": "b", "a": "r", "instruction": "i"}, {"response": "a"}, ("i", "r", None)),
    ],
)
def test_which_text_is_which(row: dict[str, Any], columns: dict[str, str], expected: tuple[Any, ...]) -> None:
    read = load_dataset([row], columns).rows[0]
    assert (read.instruction, read.response, read.plain) == expected


def test_what_is_no_pair_is_left_out_by_reason_and_not_lost(said: Said) -> None:
    rows = [
        {"instruction": "i", "response": " "},
        {"instruction": "i", "response": "r"},
        {"instruction": "i", "response": "\ud800"},
        {"instruction": 7, "response": "r"},
        {"instruction": "i", "response": "r", None: ["a further cell"]},
        {"instruction": "i", "improved_response": "r", "response": "\udfff"},
    ]
    loaded = load_dataset(rows)
    assert [row.number for row in loaded.rows] == [2]
    said(loaded.left_out)
    assert [(number, dict(row)) for number, _, row in loaded.unread] == [
        (number, row) for number, row in enumerate(rows, start=1) if number != 2
    ]


def test_a_ragged_table_is_not_read_as_if_it_were_whole(said: Said, tmp_path: Path) -> None:
    table = tmp_path / "d.csv"
    table.write_text("instruction,response\nSay a, b, and c\nOne,two\nOnly this\n")
    loaded = load_dataset(table)
    assert [(row.instruction, row.response) for row in loaded.rows] == [("One", "two")]
    said(loaded.left_out)


@pytest.mark.parametrize(
    ("rows", "columns", "kind", "message"),
    [
        ([], {}, ReferencesError, "no rows"),
        ([{"ask": "q", "reply": "a"}], {}, ReferencesError, "its columns are ask, reply"),
        ([{"question": "q"}, {"answer": "a"}], {}, ReferencesError, "question, answer"),
        ([{"instruction": "i", "response": "r"}], {"plain": "old"}, ReferencesError, "no row has the column old"),
        ([{"instruction": "i", "response": "r"}], {"instuction": "q"}, ConfigError, "'instuction' is not one of"),
        (["text"], {}, ReferencesError, "data row 1: is a str"),
        (7, {}, ReferencesError, "cannot read a int"),
        (None, {}, ReferencesError, "cannot read a NoneType"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(
    rows: Any, columns: dict[str, str], kind: type[InputError], message: str
) -> None:
    with pytest.raises(kind, match=message) as raised:
        load_dataset(rows, columns)
    assert "\n" not in str(raised.value)


def test_a_run_is_read_with_both_responses(tmp_path: Path) -> None:
    made = refed_dspy.synthesize(
        None, references(2), size=6, teacher=fake_lm(Writer()), run_dir=tmp_path / "run", track=False
    )
    loaded = load_dataset(tmp_path / "run")
    assert [(row.instruction, row.response, row.plain) for row in loaded.rows] == [
        (sample.instruction, sample.improved_response, sample.response) for sample in made.samples
    ]
    assert loaded.has_plain and loaded.rows[0].fields["sample"] == 1


def test_folders_without_a_run(said: Said, tmp_path: Path) -> None:
    with said.by(ReferencesError):
        load_dataset(tmp_path)
    rows = [{"instruction": "i", "response": "b", "first": "a"}]
    judge = fake_lm(Writer('{"reason": "r", "grade": "5"}'))
    refed_dspy.filter_data(rows, ["rubric"], judge=judge, columns={"plain": "first"}, out=tmp_path / "f")
    kept = load_dataset(tmp_path / "f")
    assert [row.plain for row in kept.rows] == ["a"], "the columns that the filtering was told of"
    assert len(load_dataset(tmp_path / "f" / "kept.jsonl").rows) == 1
    (tmp_path / "f" / "kept.jsonl").unlink()
    with said.by(RunDirError):
        load_dataset(tmp_path / "f")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ledger.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 9)
    with said.by(RunDirError):
        load_dataset(tmp_path / "broken")


def test_a_draw_is_the_seeds_and_in_order() -> None:
    rows = load_dataset([{"instruction": f"i{n}", "response": "r"} for n in range(50)]).rows
    for seed in range(5):
        some = [row.number for row in drawn(rows, 9, seed)]
        assert some == sorted(n + 1 for n in random.Random(seed).sample(range(50), 9))
    assert list(drawn(rows, None, 1)) == list(drawn(rows, 50, 1)) == list(rows)


def test_a_row_keeps_its_system_prompt(said: Said) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    [row] = load_dataset([{"messages": messages}]).rows
    said((row.instruction, row.system, row.posed))
    assert load_dataset([{"instruction": "Q", "response": "A"}]).rows[0].posed == "Q"


def test_a_result_is_read_as_its_folder_is(tmp_path: Path) -> None:
    made = refed_dspy.synthesize(
        None, references(4), size=5, teacher=fake_lm(Writer()), run_dir=tmp_path / "run", track=False, progress=False
    )
    given, named = (
        refed_dspy.filter_data(data, [{"random": {"keep": 4}}], out=tmp_path / out, progress=False)
        for data, out in ((made, "given"), (made.run_dir, "named"))
    )
    assert given[0].keys() == named[0].keys() >= {"reference", "improved_response"} and given.source == named.source
    again = refed_dspy.filter_data(given, [{"random": {"keep": 2}}], out=tmp_path / "again", progress=False)
    assert again.source["place"] == str(given.out.resolve()) and again.source["of"]["place"] == given.source["place"]
    assert refed_dspy.measure(made).data.has_plain and load_dataset(given).name == str(given.out)
    for result in (made, given):
        assert refed_dspy.share(result, tmp_path / f"share-{type(result).__name__}").rows == len(result)
