"""Reading references: every kind of file, what a notebook has at hand, and the messages about what cannot be used."""

from __future__ import annotations

import csv
import os
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import dspy
import pandas
import pytest

from refed_dspy.data import read
from refed_dspy.data.references import References, load_references
from refed_dspy.errors import ReferencesError
from refed_dspy.records import Reference
from tests.support import ROOT
from tests.support.refusals import refusal
from tests.support.row_files import KINDS, write_rows
from tests.support.said import Said

Row = dict[str, Any]
ROWS: list[Row] = [
    {"instruction": "Name a bird.", "response": "The wren."},
    {"instruction": "Two\nlines, “quoted”?", "response": 'Say ""hi""; a, b.\n\nDone.'},
]
PAIR = '{"instruction": "Name a bird.", "response": "The wren."}'
QA = {"question": "Q1", "answer": "A1"}
SELF_INSTRUCT = ROOT.parent / "shared/data/self_instruct_seed_tasks.jsonl"
refused = partial(refusal, ReferencesError, load_references)


def pairs(references: References) -> list[tuple[str, str]]:
    return [(reference.instruction, reference.response) for reference in references]


# --- files


@pytest.mark.parametrize("name", [*(f"rows.{kind}" for kind in KINDS), "rows.ndjson", "ROWS.JSONL"])
def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name, ROWS)
    for source in (path, str(path)):
        references = load_references(source)
        assert pairs(references) == [(row["instruction"], row["response"]) for row in ROWS]
        assert [reference.source for reference in references] == [f"{path} row 1", f"{path} row 2"]
    if path.suffix != ".parquet":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert pairs(load_references(path)) == pairs(references), "a byte order mark does no harm"


def test_rows_are_numbered_as_lines_and_end_where_a_line_does(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    separated = PAIR.replace("bird", text := "a\u2028b\x85c")
    path.write_bytes(f"\r\n{PAIR}\r\n\r\n{separated}\r\n".encode())
    first, second = load_references(path)
    assert (first.source, second.source) == (f"{path} row 2", f"{path} row 4") and text in second.instruction


def test_the_packages_own_references_are_all_usable_and_different(said: Said) -> None:
    references = load_references()
    assert len(references) >= 30 and not references.left_out
    assert len({reference.instruction[:30] for reference in references}) == len(references)
    said(references[0].source)


@pytest.mark.skipif(not SELF_INSTRUCT.is_file(), reason="the shared file is not here")
def test_the_real_self_instruct_file_is_read_whole() -> None:
    references = load_references(SELF_INSTRUCT)
    assert len(references) == 175 and not references.left_out


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_csv_may_have_what_spreadsheets_write_between_its_columns(tmp_path: Path, mark: str) -> None:
    texts = {"instruction": "Say: a, b; c", "response": 'So "a, b; c"\tand | more\nlines.'}
    path = tmp_path / "r.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, [*texts, "id"], delimiter=mark)
        table.writeheader()
        table.writerow({**texts, "id": "1"})
    assert pairs(load_references(path)) == [(texts["instruction"], texts["response"])]


def test_what_is_written_like_a_path_is_not_asked_of_the_hub(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_hub", lambda _: pytest.fail("asked the Hub"))
    (tmp_path / "rows.txt").write_text(PAIR)
    monkeypatch.chdir(tmp_path)
    names = [
        "none.jsonl", "none", "a/b/none.json", "folder/none.csv", "folder/train.parquet", "", "../refs.xlsx", "../refs",
        "./a/refs", "/nowhere/refs", "a/b/refs", "a/b.txt", "r", PAIR * 6, "rows.txt", ".",
    ]  # fmt: skip
    said({name[:30]: refused(name) for name in names})


def test_a_parquet_file_whose_name_is_not_utf_8_is_refused_in_a_line(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.parquet"))
    path.write_bytes(b"PAR1")
    assert refused(path).isprintable()


LATIN = PAIR.replace("wren", "caf\xe9").encode("latin-1")
HEAD = b"instruction,response\n"
BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "half an object": ("a.jsonl", "{\n", "line 1"),
    "half of the third": ("a.jsonl", f"{PAIR}\n{PAIR}\n{PAIR[:-1]}\n{PAIR}", "line 3"),
    "after blank lines": ("a.jsonl", f"\n\n{PAIR}\n\nrow\n", "line 5"),
    "two in a line": ("a.jsonl", f"{PAIR} {PAIR}", "line 1"),
    "nested without end": ("a.jsonl", "[" * 100_000, "line 1"),
    "a huge number": ("a.jsonl", f'{{"n": {"1" * 5000}}}', "line 1"),
    "nothing of JSON": ("a.json", "", "line 1"),
    "a comma is missing": ("a.json", f"[{PAIR},\n{PAIR}\n\n{PAIR}]", "line 4"),
    "endless JSON": ("a.json", "[" * 100_000, ""),
    "lines as JSON": ("a.json", f"{PAIR}\n{PAIR}", "line 2"),
    "a quote of CSV": ("a.csv", HEAD + b'"x"y,z\n', "line 2"),
    "one after two lines": ("a.csv", HEAD + b'"two\nlines",b\n"x"y,z\n', "line 4"),
    "Latin": ("a.jsonl", LATIN, "line 1"),
    "Latin further down": ("a.jsonl", f"{PAIR}\n{PAIR}\n".encode() + LATIN, "line 3"),
    "Latin in CSV": ("a.csv", HEAD + b"a,b\n\xff,c\n", "line 3"),
    "UTF-16": ("a.json", f"[\n{PAIR}]".encode("utf-16"), "line 1"),
    "after a byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + f"{PAIR}\n".encode() + b"\xff", "line 2"),
    "a list as row": ("a.jsonl", f"{PAIR}\n[1]\n", "row 2"),
    "null as row": ("a.jsonl", "null\n", "row 1"),
    "a text as row": ("a.json", f'[{PAIR}, {PAIR}, "x"]', "row 3"),
    "one object": ("a.json", PAIR, ""),
    "empty Parquet": ("a.parquet", b"", ""),
    "cut Parquet": ("a.parquet", b"PAR1", ""),
    "CSV as Parquet": ("a.parquet", HEAD + b"a,b\n", ""),
    "empty": ("a.jsonl", "", ""),
    "blank": ("a.jsonl", "\n \n", ""),
    "empty CSV": ("a.csv", "", ""),
    "CSV without rows": ("a.csv", HEAD, ""),
    "an empty list": ("a.json", "[]", ""),
}
"""What a file's name and content may be → the place that is told."""


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_cannot_be_read_is_told_with_its_line(said: Said, tmp_path: Path, what: str) -> None:
    name, content, place = BROKEN[what]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = refused(path)
    assert told.startswith(f"{path} {place}".strip() + ":")
    said(told)


# --- Python objects


def test_a_dataset_is_read_like_a_list(said: Said) -> None:
    for rows in (
        ROWS,
        [{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}],
        [{"conversations": ["Q", "A"]}],
    ):
        dataset = datasets.Dataset.from_list(rows)
        references = load_references(dataset)
        assert (
            pairs(references) == pairs(load_references(rows)) == pairs(load_references(datasets.DatasetDict(a=dataset)))
        )
        said(references[0].source)
    said(refused(datasets.DatasetDict(train=dataset, test=dataset)))


def test_a_data_frame_is_read_and_a_missing_value_counted() -> None:
    references = load_references(pandas.DataFrame([QA, {"question": "Q3"}]))
    assert pairs(references) == [("Q1", "A1")] and references.left_out == {"empty": 1}


def test_mappings_pairs_examples_and_references_may_be_mixed(said: Said) -> None:
    example = dspy.Example(instruction="Q", response="A").with_inputs("instruction")
    carp = Reference(instruction="Name a fish.", response="The carp.", source="fish.csv row 9")
    references = load_references([ROWS[0], example, carp, ("Q1", "A1")])
    said([reference.source for reference in references])
    assert pairs(references)[-1] == ("Q1", "A1")


def test_what_was_loaded_can_be_given_again_whole_or_in_part() -> None:
    references = load_references()
    assert load_references(references) is references
    assert load_references(references[3:5]).items == references.items[3:5]


def test_an_object_that_holds_no_rows_is_refused(said: Said) -> None:
    sources: list[Any] = [None, 5, ["a"], [["Q", "A"]], {"instruction": "Q", "response": "A"}, {}, [], ()]
    said({repr(source): refused(source) for source in sources} | {"an iterator": refused(iter([]))})


def test_a_references_id_is_of_its_content_alone() -> None:
    here, there = Reference(instruction="Q", response="A", source="x"), Reference(instruction="Q", response="A")
    others = [Reference(instruction="QA", response=" "), Reference(instruction="A", response="Q")]
    assert here.id == there.id and len({here.id, *(other.id for other in others)}) == 3


# --- those that fit the teacher's window


def test_references_that_leave_no_room_for_an_answer_are_left_out_and_counted(said: Said) -> None:
    rows = [{"instruction": "Q", "response": "A" * length} for length in (2_999, 3_000, 10)]
    references = load_references([*rows, rows[0]])
    fitting = references.fitting(window=2_600, max_tokens=1_000)  # 1,000 tokens left: 3,000 characters
    assert [len(reference.response) for reference in fitting] == [2_999, 10]
    said(fitting.left_out)
    assert references.fitting(None, 1_000) is references


@pytest.mark.parametrize(("window", "system"), [(500, ""), (1_601, ""), (8_192, "S" * 30_000)])
def test_a_window_that_none_fits_is_refused(said: Said, window: int, system: str) -> None:
    references = load_references([{**ROWS[0], "system": system}])
    said(refusal(ReferencesError, references.fitting, window, max_tokens=1_000))
