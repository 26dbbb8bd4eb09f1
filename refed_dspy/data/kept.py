"""Results of paid work in a folder; those that are its kept rows, as a sequence, a data frame and a data set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from refed_dspy.data.export import export
from refed_dspy.data.on_disk import OnDisk
from refed_dspy.data.tables import common_types, mapped, tables
from refed_dspy.errors import ExportError, briefly, one_line
from refed_dspy.files import path_of
from refed_dspy.ledger.states import state_in
from refed_dspy.text import Shown

if TYPE_CHECKING:
    import datasets
    import pandas as pd


class InFolder(Shown):
    """The result of paid work, written to the folder `out`."""

    out: Path

    @property
    def state(self) -> str:
        """How the work stands now: running, stopped, killed, ended short, at its cap or done."""
        return state_in(self.out)


class KeptRows(InFolder, Sequence[dict[str, Any]]):
    """A result that is a sequence of the rows it keeps."""

    def __fspath__(self) -> str:
        return str(self.out)

    @abstractmethod
    def kept(self) -> Iterator[dict[str, Any]]:
        """The kept rows, in their order."""

    @cached_property
    def _kept(self) -> OnDisk[dict[str, Any]]:
        return OnDisk(self.kept())

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return self._kept[index]

    @briefly
    def export(self, format: str, out: str | Path, *, force: bool = False) -> int:  # noqa: A002
        """Write the kept rows to a file, and return how many rows or pairs; see `refed export`."""
        return export(self.out, format, path_of(out, "out"), force=force).count

    def to_pandas(self) -> pd.DataFrame:
        """The kept rows as a data frame."""
        import pandas as pd

        return pd.DataFrame(list(self._kept))

    def to_dataset(self) -> datasets.Dataset:
        """The kept rows as a `datasets.Dataset`, which lie in a file (`data.tables.mapped`). Raises ExportError where a
        column holds values of several kinds."""
        import pyarrow as pa

        types = common_types(self._kept)
        if (mixed := next((name for name, kind in types.items() if kind is None), None)) is not None:
            raise ExportError(f"column {one_line(mixed, 80)}: holds values of several kinds; use to_pandas")
        schema = pa.schema([*types.items()])
        return mapped(tables(self._kept, schema), schema)
