"""Values and rows in a temporary file: a list in all but memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.data.dataset import OnDisk, load_dataset
from refed_dspy.records import digest, digest_of


def test_it_is_a_list() -> None:
    values: list[dict[str, Any]] = [{"text": "é" * n, "n": [n, None]} for n in range(9)]
    kept = OnDisk(values)
    assert list(kept) == values and kept[-1] == values[-1] and kept[2:7:2] == values[2:7:2]
    kept.append({"more": True})
    assert len(kept) == 10 and kept[9] == {"more": True} and values[3] in kept
    with pytest.raises(IndexError):
        kept[10]


def test_what_cannot_be_pickled_stays_as_it_is() -> None:
    odd = lambda: 3  # noqa: E731
    assert list(OnDisk([1, odd, 2])) == [1, odd, 2]


def test_rows_of_a_file_are_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Q{n}", "response": "x" * 4_000}) + "\n" for n in range(2_000)))
    tracemalloc.start()
    data = load_dataset(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200_000 and peak < 1_000_000, "the file has eight megabytes"
    assert len(data.rows) == 2_000 and data.rows[1_999].instruction == "Q1999"
    assert [row.number for row in data.rows.at([5, 1])] == [6, 2] == list(data.rows.at([5, 1]).numbers)


def test_rows_that_are_no_pair_are_kept_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "response": "b"}\n\n{"instruction": "c"}\n')
    data = load_dataset(path)
    assert list(data.unread) == [(3, "unrecognised", {"instruction": "c"})] and data.left_out == {"unrecognised": 1}


def test_a_digest_of_values_one_by_one_is_that_of_their_list() -> None:
    values = [[1, "é\ud800", None], {"b": 1, "a": 2}]
    for some in ([], values[:1], values):
        assert digest_of(iter(some)) == digest(some)
        assert digest_of(iter(some), {"x": 1}, 7) == digest([some, {"x": 1}, 7])
