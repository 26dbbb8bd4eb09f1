"""A result's kept rows as a sequence, a data frame and a data set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from refed_dspy.data.export import export
from refed_dspy.errors import ExportError, briefly, one_line
from refed_dspy.files import path_of
from refed_dspy.text import Shown

if TYPE_CHECKING:
    import datasets
    import pandas as pd


class KeptRows(Shown, Sequence[dict[str, Any]]):
    """A result that is a sequence of the rows it keeps."""

    out: Path
    """The folder that they are in."""

    @abstractmethod
    def kept(self) -> Iterator[dict[str, Any]]:
        """The kept rows, in their order."""

    @cached_property
    def _kept(self) -> list[dict[str, Any]]:
        return list(self.kept())

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

        return pd.DataFrame(self._kept)

    def to_dataset(self) -> datasets.Dataset:
        """The kept rows as a `datasets.Dataset`. Raises ExportError where a column holds values of several kinds."""
        import datasets
        import pyarrow as pa

        columns = dict.fromkeys(name for row in self._kept for name in row)
        try:
            return datasets.Dataset.from_dict({name: [row.get(name) for row in self._kept] for name in columns})
        except pa.ArrowException as error:
            raise ExportError(
                f"a column holds values of several kinds ({one_line(error, 120)}); use to_pandas"
            ) from None
