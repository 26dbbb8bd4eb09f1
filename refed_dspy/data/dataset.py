"""Reading an instruction data set: a file, a Hub data set, a list, or what a run has made. Its rows lie in a temporary
file instead of memory, and are read when they are accessed."""

from __future__ import annotations

import os
import pickle
import random
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from refed_dspy.config.base import PAIR
from refed_dspy.data.read import rows_of
from refed_dspy.data.references import LeftOut, Unrecognised, check_roles, exchange_of, none_usable
from refed_dspy.data.rows import data_rows
from refed_dspy.data.stored import ROWS, SOURCE, read_json, rows_in, work_in
from refed_dspy.errors import ReferencesError, briefly, one_line
from refed_dspy.files import as_export_error, as_path
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import noted_settings
from refed_dspy.ledger.states import FUNNEL, named_work
from refed_dspy.records import DataRow, Reference, digest, digest_of
from refed_dspy.text import Shown

T = TypeVar("T")
ROLES = (*PAIR, "plain")
"""The keys that `columns` may have."""


class OnDisk(Sequence[T], Generic[T]):
    """A list that takes 8 bytes of memory a value: they are in a file without a name in the temporary folder
    (`TMPDIR`), which goes with this object. What cannot be pickled stays in memory.

    Raises ExportError where the file cannot be written.
    """

    def __init__(self, values: Iterable[T] = ()) -> None:
        with self._writing():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 — closed with this object
        weakref.finalize(self, self._file.close)
        self._ends, self._others = array("Q", [0]), dict[int, T]()
        self._flushed = True
        for value in values:
            self.append(value)

    def append(self, value: T) -> None:
        """Add a value at the end."""
        try:
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError):
            self._others[len(self)], data = value, b""
        with self._writing():
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        self._flushed = False

    def _writing(self) -> Any:
        return as_export_error(Path(tempfile.gettempdir()))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        if at in self._others:
            return self._others[at]
        if not self._flushed:
            with self._writing():
                self._file.flush()
            self._flushed = True
        begin, end = self._ends[at], self._ends[at + 1]
        value: T = pickle.loads(os.pread(self._file.fileno(), end - begin, begin))  # noqa: S301 — our own file
        return value


class RowsOnDisk(Shown, Sequence[DataRow]):
    """Rows of a data set in some order, on disk. `numbers`: theirs, as `DataRow.number`."""

    def __init__(self, references: Mapping[str, Reference] | None = None) -> None:
        self._references = references or {}
        self._stored, self._places = OnDisk[tuple[Any, ...]](), array("I")
        self.numbers = array("Q")

    def append(self, row: DataRow) -> None:
        """Add a row at the end. Its reference is the one that its column `reference` names."""
        self._places.append(len(self._stored))
        self.numbers.append(row.number)
        self._stored.append((row.number, row.instruction, row.response, row.plain, row.fields, row.system))

    def at(self, places: Iterable[int]) -> RowsOnDisk:
        """The rows at these places of this one."""
        chosen = RowsOnDisk.__new__(RowsOnDisk)
        chosen._references, chosen._stored = self._references, self._stored
        chosen._places, chosen.numbers = array("I"), array("Q")
        for place in places:
            chosen._places.append(self._places[place])
            chosen.numbers.append(self.numbers[place])
        return chosen

    def _describe(self) -> str:
        return f"{len(self)} rows"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return ("instruction", "response"), ((row.instruction, row.response) for row in self)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> DataRow: ...
    @overload
    def __getitem__(self, index: slice) -> RowsOnDisk: ...
    def __getitem__(self, index: int | slice) -> DataRow | RowsOnDisk:
        if isinstance(index, slice):
            return self.at(range(*index.indices(len(self))))
        number, instruction, response, plain, fields, system = self._stored[self._places[index]]
        reference = self._references.get(fields["reference"]) if self._references else None
        return DataRow(number, instruction, response, plain, fields, reference, system)

    def __iter__(self) -> Iterator[DataRow]:
        for place in range(len(self)):
            yield self[place]


@dataclass(frozen=True, repr=False)
class DataSet(Shown):
    """The usable rows of a data set in their order, and the others. `name` is the source as it was named."""

    name: str
    rows: RowsOnDisk
    left_out: Mapping[str, int]
    """How many rows were left out, by reason."""
    unread: Sequence[tuple[int, str, Mapping[str, Any]]] = ()
    """The rows left out: number, reason, and the row unchanged."""

    def _describe(self) -> str:
        return f"{len(self.rows)} rows of {self.name}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return self.rows._table()

    @cached_property
    def without_plain(self) -> int:
        """How many rows lack the response before it was improved."""
        return sum(row.plain is None for row in self.rows)

    @property
    def has_plain(self) -> bool:
        """Whether every row has the response before it was improved, too."""
        return not self.without_plain


@briefly
def load_dataset(source: Any, columns: Mapping[str, str] | None = None) -> DataSet:
    """The rows of `source`.

    Args:
        source: the folder or the result of a run, a filtering or a recycling; a JSONL, JSON, CSV or Parquet file; a
            Hub data set's name; or a list of mappings.
        columns: column names that differ from the usual ones: {"instruction": …, "response": …, "input": …,
            "plain": …}.
            `response` is the text to train on; `plain` is the response before it was improved. A row with
            `improved_response` has both.

    Raises:
        ConfigError: `columns` has an unknown key.
        ReferencesError: the source cannot be read or has no usable row; one line with file, row and remedy.
        RunDirError: a folder without a run, or a damaged one.
    """
    source = as_path(source)
    columns = dict(columns or noted_columns(source))
    check_roles(columns, ROLES)
    with _source(source) as (name, rows, references):
        return _loaded(name, rows, references, columns)


def _loaded(
    name: str,
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    references: Mapping[str, Reference],
    columns: Mapping[str, str],
) -> DataSet:
    usable, unread = RowsOnDisk(references), OnDisk[tuple[int, str, Mapping[str, Any]]]()
    left_out: Counter[str] = Counter()
    seen: dict[str, None] = {}
    strange = False
    for number, row in rows:
        seen.update(dict.fromkeys(str(key) for key in row))
        try:
            usable.append(_row(number, row, columns))
        except LeftOut as reason:
            unread.append((number, str(reason), dict(row)))
            left_out[str(reason)] += 1
            strange = strange or isinstance(reason, Unrecognised)
    if not usable:
        raise ReferencesError(none_usable(name, left_out, [*seen][:12] if strange else []))
    if "plain" in columns and columns["plain"] not in seen:
        there = one_line(", ".join([*seen][:12]), 200)
        raise ReferencesError(
            f"{name}: no row has the column {columns['plain']} (columns: plain); its columns are {there}"
        )
    return DataSet(name, usable, dict(left_out), unread)


@contextmanager
def _source(source: Any) -> Iterator[tuple[str, Iterable[tuple[int, Mapping[str, Any]]], Mapping[str, Reference]]]:
    """Its name, its rows with their numbers, and by id the references that a run made them from."""
    if isinstance(source, str | Path):
        folder = Path(source)
        if _is_file(folder / FUNNEL) or _is_file(folder / FILE):
            if (work := work_in(folder)) in ROWS:
                yield str(source), enumerate(rows_in(folder, work), start=1), {}
                return
            with _run(folder, work) as ledger:
                references = {reference.id: reference for reference in ledger.references()}
                yield str(source), enumerate(data_rows(ledger), start=1), references
            return
    name, rows = rows_of(source, "data")
    yield name, rows, {}


def noted_columns(source: Any) -> dict[str, str]:
    """The columns that a filtering in the folder `source` was told of: its rows have the same."""
    if isinstance(source, str | Path) and _is_file(Path(source) / FUNNEL):
        return dict(noted_settings(read_json(Path(source) / SOURCE)).values.get("columns", {}))
    return {}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


@contextmanager
def _run(folder: Path, work: str) -> Iterator[Ledger]:
    with Ledger.read(folder) as ledger:
        if work != "run":
            there = sorted(path.name for path in folder.glob("*.jsonl"))
            hint = f"pass one of its files: {', '.join(there)}" if there else "pass a run's folder or a file"
            raise ReferencesError(f"{folder}: contains {named_work(work)}, not a run; {hint}")
        yield ledger


def _row(number: int, row: Mapping[str, Any], columns: Mapping[str, str]) -> DataRow:
    """Raises LeftOut for a row that is no pair of instruction and response."""
    if None in row:  # where Python's csv puts cells beyond the last column
        raise LeftOut("more cells than columns")
    names = {name: column for name, column in columns.items() if name != "plain"}
    plain = columns.get("plain")
    if "response" not in names and isinstance(row.get("improved_response"), str):  # as this package exports it
        names["response"], plain = "improved_response", plain or "response"
    pair = exchange_of(row, names)
    before = None if plain is None else _plain(row, plain)
    return DataRow(number, pair.instruction, pair.response, before, dict(row), system=pair.system)


def _plain(row: Mapping[str, Any], column: str) -> str | None:
    """The response before it was improved, if there is one. Raises LeftOut for a text that no model can receive."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LeftOut("broken text") from None
    return value.strip()


def drawn(rows: RowsOnDisk, count: int | None, seed: int) -> RowsOnDisk:
    """`count` of the rows, drawn by `seed`, in their order; None: all. A larger count draws the same rows and more."""
    if count is None or count >= len(rows):
        return rows
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    return rows.at(sorted(order[:count]))


def data_identity(source: Any, data: DataSet) -> str:
    """A digest that distinguishes the data set read from `source` from others: of its rows; of a run, which may grow
    meanwhile, of the run's identity. Which rows are drawn does not count: with more or fewer of them, the work is the
    same."""
    if isinstance(source, str | Path) and (Path(source) / FILE).is_file() and work_in(Path(source)) == "run":
        with Ledger.read(Path(source)) as ledger:
            return digest(["run", ledger.meta("identity")])
    return digest_of(texts_of(data.rows))


def texts_of(rows: Iterable[DataRow]) -> Iterator[list[Any]]:
    """What identifies each row: number, instruction, response, plain response."""
    return ([row.number, row.instruction, row.response, row.plain] for row in rows)
