"""Any instruction data set in: a file, a Hub name, or what a run has made."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.reading import read_rows
from refed_dspy.data.references import none_usable
from refed_dspy.data.rows import data_rows
from refed_dspy.data.shapes import LeftOut, pair_of
from refed_dspy.data.table import DataRow
from refed_dspy.engine.ledger import FILE, Ledger
from refed_dspy.errors import ReferencesError
from refed_dspy.records import Reference


@dataclass(frozen=True)
class DataSet:
    """Its usable rows in their order, and the others by reason. `name` is what a person called it."""

    name: str
    rows: Sequence[DataRow]
    left_out: Mapping[str, int]

    @property
    def has_plain(self) -> bool:
        """Whether every row has the response before it was improved, too."""
        return all(row.plain is not None for row in self.rows)


def load_dataset(source: Any, columns: Mapping[str, str] | None = None) -> DataSet:
    """The rows of `source`.

    Args:
        source: a run's folder; a JSONL, JSON, CSV or Parquet file; a Hub data set's name; or a list of mappings.
        columns: where the columns have other names: {"instruction": …, "response": …, "plain": …}. `response` is what
            is trained on; `plain` the response before it was improved. A row with `improved_response` has both.

    Raises:
        ReferencesError: it cannot be read, or no row of it is usable; one line with file, row and remedy.
        RunDirError: a folder without a run, or a damaged one.
    """
    name, rows = _source(source)
    usable: list[DataRow] = []
    left_out: Counter[str] = Counter()
    seen: list[str] = []
    for number, row in rows:
        try:
            usable.append(_row(number, row, columns or {}))
        except LeftOut as reason:
            left_out[str(reason)] += 1
            seen = seen or [str(key) for key in row][:12]
    if not usable:
        raise ReferencesError(none_usable(name, left_out, seen))
    return DataSet(name, usable, dict(left_out))


def _source(source: Any) -> tuple[str, Iterable[tuple[int, Mapping[str, Any]]]]:
    if isinstance(source, str | Path):
        folder = Path(source)
        if (folder / FILE).is_file():
            with Ledger.read(folder) as ledger:
                return str(source), list(enumerate(data_rows(ledger), start=1))
        return str(source), read_rows(source)
    return "data", ((number, _mapping(number, row)) for number, row in enumerate(source, start=1))


def _mapping(number: int, row: Any) -> Mapping[str, Any]:
    if isinstance(row, Reference):
        return {"instruction": row.instruction, "response": row.response}
    if isinstance(row, Mapping):
        return row
    raise ReferencesError(f"data row {number}: a {type(row).__name__}; each must be a mapping")


def _row(number: int, row: Mapping[str, Any], columns: Mapping[str, str]) -> DataRow:
    """Raises LeftOut where it is no pair."""
    fields = dict(row)
    names = {name: column for name, column in columns.items() if name != "plain"}
    if not names and isinstance(row.get("improved_response"), str):  # as this package writes them
        instruction, response = pair_of(
            {"instruction": row.get("instruction"), "response": row["improved_response"]}, {}
        )
        return DataRow(number, instruction, response, _plain(row, columns.get("plain", "response")), fields)
    instruction, response = pair_of(row, names)
    return DataRow(number, instruction, response, _plain(row, columns["plain"]) if "plain" in columns else None, fields)


def _plain(row: Mapping[str, Any], column: str) -> str | None:
    value = row.get(column)
    return value.strip() if isinstance(value, str) and value.strip() else None


def drawn(rows: Sequence[DataRow], count: int | None, seed: int) -> list[DataRow]:
    """`count` of the rows, drawn by `seed` and in their order, or all."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), count))]
