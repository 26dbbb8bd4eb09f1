"""Reading references: every kind of file, and the messages about what cannot be used."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refed_dspy.data import read
from refed_dspy.data.references import References, load_references
from refed_dspy.errors import ReferencesError
from refed_dspy.records import Reference
from tests.support import ROOT
from tests.support.said import Said

Row = dict[str, Any]
ROWS: list[Row] = [
    {"instruction": "Name a bird.", "response": "The wren."},
    {"instruction": "Two\nlines, “quoted”?", "response": 'Say ""hi""; a, b.\n\nDone.'},
]
PAIR = '{"instruction": "Name a bird.", "response": "The wren."}'
SELF_INSTRUCT = ROOT.parent / "shared/data/self_instruct_seed_tasks.jsonl"


def pairs(references: References) -> list[tuple[str, str]]:
    return [(reference.instruction, reference.response) for reference in references]


def refusal(source: Any, columns: dict[str, str] | None = None) -> str:
    """The one line with which this source is refused."""
    with pytest.raises(ReferencesError) as caught:
        load_references(source, columns)
    message = str(caught.value)
    assert message.isprintable(), f"not one plain line: {message!r}"
    return message


def write_lines(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["instruction", "response"])
        table.writeheader()
        table.writerows(ROWS)


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


# --- kinds of files


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", write_lines),
        ("rows.ndjson", write_lines),
        ("ROWS.JSONL", write_lines),
        ("rows.json", write_json),
        ("rows.csv", write_csv),
        ("rows.parquet", write_parquet),
    ],
)
def test_the_same_rows_are_read_from_every_kind_of_file(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    write(path)
    for source in (path, str(path)):
        references = load_references(source)
        assert pairs(references) == [(row["instruction"], row["response"]) for row in ROWS]
        assert [reference.source for reference in references] == [f"{path} row 1", f"{path} row 2"]


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", write_lines), ("a.json", write_json), ("a.csv", write_csv)])
def test_a_byte_order_mark_does_no_harm(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    path = tmp_path / name
    write(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_references(path)) == len(ROWS)


def test_blank_lines_and_windows_line_ends_do_no_harm_and_rows_are_numbered_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"\r\n{PAIR}\r\n\r\n{PAIR.replace('bird', 'tree')}\r\n".encode())
    assert [reference.source for reference in load_references(path)] == [f"{path} row 2", f"{path} row 4"]


def test_a_unicode_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"instruction": "a\u2028b\x85c", "response": "d"}, ensure_ascii=False), encoding="utf-8")
    assert pairs(load_references(path)) == [("a\u2028b\x85c", "d")]


def test_the_packages_own_references_are_all_usable(said: Said) -> None:
    references = load_references()
    assert len(references) >= 30
    assert references.left_out == {}
    said(references[0].source)


@pytest.mark.skipif(not SELF_INSTRUCT.is_file(), reason="the shared file is not here")
def test_the_real_self_instruct_file_is_read_whole() -> None:
    references = load_references(SELF_INSTRUCT)
    assert len(references) == 175
    assert references.left_out == {}


# --- files that cannot be read


@pytest.mark.parametrize("name", ["none.jsonl", "none.csv", "none", "a/b/none.json", "folder/none.csv", ""])
def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(name)
    assert message.startswith(f"{name}: ")
    assert "Hub cannot" not in message


def test_a_missing_parquet_file_is_not_looked_for_on_the_hub(said: Said) -> None:
    said(refusal("folder/train.parquet"))


@pytest.mark.parametrize("name", ["../refs.xlsx", "../refs", "./a/refs", "/nowhere/refs", "a/b/refs", "a/b.txt", "r"])
def test_what_is_written_like_a_path_is_not_asked_of_the_hub(
    said: Said, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_hub", lambda _: pytest.fail("asked the Hub"))
    said(refusal(name))


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_a_csv_may_have_what_spreadsheets_write_between_its_columns(tmp_path: Path, mark: str) -> None:
    texts = {"instruction": "Say: a, b; c", "response": 'So "a, b; c"\tand | more\nlines.'}
    path = tmp_path / "r.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, [*texts, "id"], delimiter=mark)
        table.writeheader()
        table.writerow({**texts, "id": "1"})
    [reference] = load_references(path)
    assert (reference.instruction, reference.response) == tuple(texts.values())


def test_rows_given_as_text_instead_of_a_path_are_refused() -> None:
    refusal(PAIR * 6)


def test_a_folder_is_refused(said: Said, tmp_path: Path) -> None:
    said(refusal(tmp_path))


def test_another_kind_of_file_is_refused_with_the_kinds_known(said: Said, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(PAIR)
    said(refusal(path))


CSV_HEAD = "instruction,response\n"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.jsonl", "{\n", 1),
        ("a.jsonl", f"{PAIR}\n{PAIR}\n{PAIR[:-1]}\n{PAIR}", 3),
        ("a.jsonl", f"\n\n{PAIR}\n\nrow\n", 5),
        ("a.jsonl", f"{PAIR} {PAIR}", 1),
        ("a.json", "", 1),
        ("a.json", f"[{PAIR},\n{PAIR}\n\n{PAIR}]", 4),
        ("a.json", f"{PAIR}\n{PAIR}", 2),
        pytest.param("a.csv", f'{CSV_HEAD}"x"y,z\n', 2, id="csv-quote"),
        pytest.param(
            "a.csv",
            f'{CSV_HEAD}"two\nlines",b\n"x"y,z\n',
            4,
            id="csv-after-two-lines",
        ),
    ],
)
def test_a_broken_file_is_told_with_its_line(tmp_path: Path, name: str, text: str, line: int) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert refusal(path).startswith(f"{path} line {line}: broken ")


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.jsonl", PAIR.replace("wren", "caf\xe9").encode("latin-1"), 1),
        ("a.jsonl", f"{PAIR}\n{PAIR}\n".encode() + PAIR.replace("wren", "caf\xe9").encode("latin-1"), 3),
        ("a.csv", b"instruction,response\na,b\n\xff,c\n", 3),
        ("a.json", f"[\n{PAIR}]".encode("utf-16"), 1),
        pytest.param(
            "a.jsonl",
            b"\xef\xbb\xbf" + f"{PAIR}\n".encode() + b"\xff",
            2,
            id="after-a-byte-order-mark",
        ),
    ],
)
def test_a_file_that_is_not_utf8_is_told_with_the_line(
    said: Said, tmp_path: Path, name: str, content: bytes, line: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    said(refusal(path))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"instruction,response\na,b\n"])
def test_a_file_that_is_not_parquet_is_refused(said: Said, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    said(refusal(path))


@pytest.mark.parametrize(
    ("name", "text", "row"),
    [("a.jsonl", f"{PAIR}\n[1]\n", 2), ("a.jsonl", "null\n", 1), ("a.json", f'[{PAIR}, {PAIR}, "x"]', 3)],
)
def test_a_row_that_is_no_object_is_told_with_its_number(tmp_path: Path, name: str, text: str, row: int) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert refusal(path).startswith(f"{path} row {row}: ")


def test_a_json_file_with_one_object_is_refused_with_the_remedy(said: Said, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(PAIR)
    said(refusal(path))


@pytest.mark.parametrize("line", ["[" * 100_000, f'{{"n": {"1" * 5000}}}'], ids=["nested", "huge number"])
def test_json_beyond_the_decoders_limits_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    assert "line 1" in refusal(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.csv", ""), ("a.csv", "instruction,response\n"), ("a.json", "[]")],
)
def test_a_file_without_rows_is_refused(said: Said, tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    said(refusal(path))


# --- Python objects


def test_a_dataset_is_read_like_a_file(said: Said) -> None:
    datasets = pytest.importorskip("datasets")
    for rows in (
        ROWS,
        [{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}],
        [{"conversations": ["Q", "A"]}],
    ):
        references = load_references(datasets.Dataset.from_list(rows))
        assert pairs(references) == pairs(load_references(rows))
        said(references[0].source)


def test_mappings_examples_and_references_may_be_mixed(said: Said) -> None:
    example = dspy.Example(instruction="Q", response="A").with_inputs("instruction")
    carp = Reference(instruction="Name a fish.", response="The carp.", source="fish.csv row 9")
    references = load_references([ROWS[0], example, carp])
    said([reference.source for reference in references])


def test_what_was_loaded_can_be_given_again_whole_or_in_part() -> None:
    references = load_references()
    assert load_references(references) is references
    assert load_references(references[3:5]).items == references.items[3:5]


@pytest.mark.parametrize("source", [None, 5, ["a"], [["Q", "A"]], {"instruction": "Q", "response": "A"}], ids=repr)
def test_an_object_that_holds_no_rows_is_refused(source: Any) -> None:
    assert refusal(source).startswith("references")


@pytest.mark.parametrize("source", [[], iter([]), ()], ids=["list", "iterator", "tuple"])
def test_no_rows_at_all_are_refused(said: Said, source: Any) -> None:
    said(refusal(source))


def test_a_references_id_is_of_its_content_alone() -> None:
    here, there = Reference(instruction="Q", response="A", source="x"), Reference(instruction="Q", response="A")
    assert here.id == there.id
    assert (
        len({here.id, Reference(instruction="QA", response=" ").id, Reference(instruction="A", response="Q").id}) == 3
    )


# --- those that fit the teacher's window


def test_references_that_leave_no_room_for_an_answer_are_left_out_and_counted(said: Said) -> None:
    rows = [{"instruction": "Q", "response": "A" * length} for length in (2_999, 3_000, 10)]
    references = load_references([*rows, rows[0]])
    fitting = references.fitting(window=2_600, max_tokens=1_000)  # 1,000 tokens left: 3,000 characters
    assert [len(reference.response) for reference in fitting] == [2_999, 10]
    said(fitting.left_out)
    assert references.fitting(None, 1_000) is references


@pytest.mark.parametrize("window", [500, 1_601])
def test_a_window_that_none_fits_is_refused(window: int) -> None:
    with pytest.raises(ReferencesError, match="context_window"):
        load_references(ROWS).fitting(window, max_tokens=1_000)


def test_a_parquet_file_whose_name_is_not_utf_8_is_refused_in_a_line(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.parquet"))
    path.write_bytes(b"PAR1")
    assert "not a readable Parquet file" in refusal(path)
