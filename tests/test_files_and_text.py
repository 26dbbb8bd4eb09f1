"""Files that are written whole or not at all, and numbers and tables for people."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import ExportError
from refed_dspy.files import check_apart, write_json, write_lines, write_text
from refed_dspy.text import NO_VALUE, format_number, table_lines


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    class Killed(BaseException): ...

    def rows() -> Any:
        yield {"a": 1}
        raise Killed

    write_lines(tmp_path / "rows.jsonl", [{"text": "漢\ud800\n"}, {}])
    first, second = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    assert json.loads(first) == {"text": "漢?\n"} and second == "{}"
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(Killed):
        write_lines(tmp_path / "rows.jsonl", rows())
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    write_text(tmp_path / "t.txt", [])
    write_json(tmp_path / "t.json", {"a": None})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "t.json", "t.txt"]
    with pytest.raises(ExportError, match="cannot be written"):
        write_text(tmp_path / "no" / "t.txt", [])


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    for data in (str(tmp_path / "a.jsonl"), tmp_path / "link" / "a.jsonl", tmp_path / "x" / ".." / "a.jsonl"):
        with pytest.raises(ExportError, match="name another folder"):
            check_apart(data, [tmp_path / "a.jsonl"])
    check_apart(tmp_path / "b.jsonl", [tmp_path / "a.jsonl"])
    check_apart([{"a": 1}], [tmp_path / "a.jsonl"])


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 2, NO_VALUE),
        (0.0, 2, "0.00"),
        (-0.001, 2, "0.00"),
        (1.005, 1, "1.0"),
        (12, 0, "12"),
        (9_999.5, 1, "9,999.5"),
        (10_000, 2, "10,000"),
        (-12_345_678.9, 2, "-12,345,679"),
        (math.inf, 2, "inf"),
    ],
)
def test_numbers_for_people(value: float | None, digits: int, text: str) -> None:
    assert format_number(value, digits) == text


def test_tables_are_aligned() -> None:
    assert table_lines([["", "old", "new"], ["rows", "1,000", "2"]]) == ["      old    new", "rows  1,000  2"]
    assert table_lines([]) == []
