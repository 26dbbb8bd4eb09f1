"""Reading data sets: which text is which, what is left out, what lies on disk, and what cannot be read."""

from __future__ import annotations

import datetime
import random
import tracemalloc
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from refed_dspy.data.dataset import OnDisk, drawn, load_dataset
from refed_dspy.errors import ConfigError, ReferencesError, RunDirError
from refed_dspy.records import Reference, digest, digest_of
from refed_dspy.runs.result import Synthesis
from tests.support.refusals import refusal
from tests.support.row_files import write_rows
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
PAIR = {"instruction": "i", "response": "r"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    folder = tmp_path_factory.mktemp("made") / "run"
    return refed_dspy.synthesize(None, references(4), size=5, teacher=fake_lm(Writer()), run_dir=folder, track=False)


def test_fields_stay_as_they_stood(tmp_path: Path) -> None:
    rows = [{**row, "day": datetime.date(2024, 2, 29)} for row in ROWS]
    assert [dict(row.fields) for row in load_dataset(rows).rows] == rows
    kept = load_dataset(write_rows(tmp_path / "d.parquet", rows)).rows
    assert [(row.number, row.instruction, row.response) for row in kept] == [
        (at, row["instruction"], row["response"]) for at, row in enumerate(rows, start=1)
    ]
    assert kept[0].fields["day"] == datetime.date(2024, 2, 29) and kept[0].fields["tags"] == ["a", None]


def test_a_list_is_not_changed_and_may_hold_references_and_examples() -> None:
    source = [dict(ROWS[0])]
    first = load_dataset(source).rows[0]
    assert source == [ROWS[0]] and first.fields is not source[0]
    mixed: list[Any] = [Reference(instruction="a", response="b"), dspy.Example(instruction="c", response="d")]
    for once in (mixed, iter(mixed)):
        assert [row.response for row in load_dataset(once).rows] == ["b", "d"]


BOTH = {"instruction": "i", "improved_response": "better", "response": "first"}


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        (BOTH, {}, ("i", "better", "first")),
        (BOTH | {"q": "asked"}, {"instruction": "q"}, ("asked", "better", "first")),
        (BOTH | {"old": "older"}, {"plain": "old"}, ("i", "better", "older")),
        (BOTH | {"input": "x"}, {}, ("i\n\nx", "better", "first")),
        (BOTH | {"improved_response": None}, {}, ("i", "first", None)),
        (BOTH | {"a": "answer"}, {"response": "a"}, ("i", "answer", None)),
        (PAIR | {"old": " o "}, {"plain": "old"}, ("i", "r", "o")),
        (PAIR | {"old": None}, {"plain": "old"}, ("i", "r", None)),
    ],
)
def test_which_text_is_which(row: dict[str, Any], columns: dict[str, str], expected: tuple[Any, ...]) -> None:
    read = load_dataset([row], columns).rows[0]
    assert (read.instruction, read.response, read.plain) == expected


def test_what_is_no_pair_is_left_out_by_reason_and_not_lost(said: Said) -> None:
    rows: list[dict[Any, Any]] = [
        {"instruction": "i", "response": " "}, PAIR, {"instruction": "i", "response": "\ud800"},
        {"instruction": 7, "response": "r"}, {**PAIR, None: ["a further cell"]},
        {"instruction": "i", "improved_response": "r", "response": "\udfff"},
    ]  # fmt: skip
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


def test_what_cannot_be_used_is_told_in_a_line(said: Said) -> None:
    wrong: list[tuple[Any, dict[str, str]]] = [
        ([], {}), ([{"ask": "q", "reply": "a"}], {}), ([{"question": "q"}, {"answer": "a"}], {}),
        ([PAIR], {"plain": "old"}), (["text"], {}), (7, {}), (None, {}),
    ]  # fmt: skip
    said({str(given): refusal(ReferencesError, load_dataset, *given) for given in wrong})
    said(refusal(ConfigError, load_dataset, [PAIR], {"instuction": "q"}))


def test_a_run_is_read_with_both_responses(made: Synthesis) -> None:
    loaded = load_dataset(made.run_dir)
    assert [(row.instruction, row.response, row.plain) for row in loaded.rows] == [
        (sample.instruction, sample.improved_response, sample.response) for sample in made.samples
    ]
    assert loaded.has_plain and loaded.rows[0].fields["sample"] == 1


def test_a_result_is_read_as_its_folder_is(made: Synthesis, tmp_path: Path) -> None:
    given, named = (
        refed_dspy.filter_data(data, [{"random": {"keep": 4}}], out=tmp_path / out, progress=False)
        for data, out in ((made, "given"), (made.run_dir, "named"))
    )
    assert given[0].keys() == named[0].keys() >= {"reference", "improved_response"} and given.source == named.source
    again = refed_dspy.filter_data(given, [{"random": {"keep": 2}}], out=tmp_path / "again", progress=False)
    assert again.source["place"] == str(given.out.resolve()) and again.source["of"]["place"] == given.source["place"]
    assert refed_dspy.measure(made, embeddings=False).data.has_plain and load_dataset(given).name == str(given.out)
    for result in (made, given):
        assert refed_dspy.share(result, tmp_path / f"share-{type(result).__name__}").rows == len(result)


def test_folders_without_a_run(said: Said, tmp_path: Path) -> None:
    said(refusal(ReferencesError, load_dataset, tmp_path))
    rows = [{"instruction": "i", "response": "b", "first": "a"}]
    judge = fake_lm(Writer('{"reason": "r", "grade": "5"}'))
    refed_dspy.filter_data(rows, ["rubric"], judge=judge, columns={"plain": "first"}, out=tmp_path / "f")
    assert load_dataset(tmp_path / "f").rows[0].plain == "a", "the columns that the filtering was told of"
    assert len(load_dataset(tmp_path / "f" / "kept.jsonl").rows) == 1
    (tmp_path / "f" / "kept.jsonl").unlink()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ledger.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 9)
    said([refusal(RunDirError, load_dataset, tmp_path / folder) for folder in ("f", "broken")])


def test_a_draw_is_the_seeds_and_in_order() -> None:
    rows = load_dataset([{"instruction": f"i{n}", "response": "r"} for n in range(50)]).rows
    for seed in range(5):
        some = [row.number for row in drawn(rows, 9, seed)]
        assert some == sorted(n + 1 for n in random.Random(seed).sample(range(50), 9))
    assert list(drawn(rows, None, 1)) == list(drawn(rows, 50, 1)) == list(rows)


def test_a_row_keeps_its_system_prompt(said: Said) -> None:
    texts = {"system": "S", "user": "Q", "assistant": "A"}
    [row] = load_dataset([{"messages": [{"role": role, "content": text} for role, text in texts.items()]}]).rows
    assert (row.instruction, row.system) == ("Q", "S")
    said(row.posed)
    assert load_dataset([{"instruction": "Q", "response": "A"}]).rows[0].posed == "Q"


# --- on disk


def test_values_on_disk_are_a_list() -> None:
    odd = lambda: 3  # noqa: E731
    values: list[Any] = [{"text": "é" * n, "n": [n, None]} for n in range(9)]
    kept = OnDisk(values)
    assert list(kept) == values and kept[-1] == values[-1] and kept[2:7:2] == values[2:7:2]
    kept.append(odd)
    assert len(kept) == 10 and kept[9] is odd and values[3] in kept, "what cannot be pickled stays as it is"
    with pytest.raises(IndexError):
        kept[10]


def test_rows_of_a_file_are_not_held_in_memory(tmp_path: Path) -> None:
    rows = [{"instruction": f"Q{n}", "response": "x" * 4_000} for n in range(500)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    tracemalloc.start()
    data = load_dataset(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200_000 and peak < 1_000_000, "the file has two megabytes"
    assert len(data.rows) == 500 and data.rows[499].instruction == "Q499"
    assert [row.number for row in data.rows.at([5, 1])] == [6, 2] == list(data.rows.at([5, 1]).numbers)


def test_a_digest_of_values_one_by_one_is_that_of_their_list() -> None:
    values = [[1, "é\ud800", None], {"b": 1, "a": 2}]
    for some in ([], values[:1], values):
        assert digest_of(iter(some)) == digest(some)
        assert digest_of(iter(some), {"x": 1}, 7) == digest([some, {"x": 1}, 7])
