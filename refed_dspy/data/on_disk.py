"""Values in a temporary file instead of memory, read when they are accessed; among them the rows of a data set."""

from __future__ import annotations

import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from refed_dspy.files import as_export_error
from refed_dspy.records import DataRow, Reference
from refed_dspy.text import Shown

T = TypeVar("T")


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
