"""The data as Parquet shards, with private values removed from its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from refed_dspy.data.rows import DROPPED_COLUMNS
from refed_dspy.sharing.redact import public_detail, public_endpoint, public_model, public_source

TEACHERS = ("teacher", "response_teacher", "instruction_teacher")
ENDPOINTS = ("endpoint", "response_endpoint", "instruction_endpoint")
_CLEANED: Mapping[str, Callable[[str | None], str]] = {
    **dict.fromkeys(TEACHERS, public_model),
    **dict.fromkeys(ENDPOINTS, public_endpoint),
    "reference_source": public_source,
}
_GROUP = 1_000


@dataclass(frozen=True)
class ShardSize:
    """A shard ends at `rows` rows, or once it has `bytes` bytes, whichever comes first."""

    rows: int = 100_000
    bytes: int = 256 * 2**20


def cleaned_tables(path: Path) -> Iterator[Any]:
    """The rows of the Parquet file at `path` as `pyarrow.Table`s of up to 1,000 rows, ready to publish."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_GROUP):
            yield _cleaned(pa, pa.Table.from_batches([batch]))


def _cleaned(pa: Any, table: Any) -> Any:
    for name, clean in _CLEANED.items():
        if name in table.column_names:
            values = pa.array([clean(value) for value in table[name].to_pylist()], pa.string())
            table = table.set_column(table.column_names.index(name), name, values)
    return table


def dropped_tables(rows: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    """Dropped rows (`data.rows.dropped_rows`) as `pyarrow.Table`s of up to 1,000, ready to publish."""
    import pyarrow as pa

    kinds = {"round": pa.int64(), "score": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in DROPPED_COLUMNS])
    remaining = iter(rows)
    while group := list(islice(remaining, _GROUP)):
        group = [{**row, "detail": public_detail(row["reason"], row["detail"])} for row in group]
        yield pa.Table.from_pylist(group, schema=schema)


def write_shards(tables: Iterable[Any], folder: Path, size: ShardSize) -> tuple[int, str]:
    """Write `tables` into `folder`, which it makes, as `train-00000-of-0000N.parquet`.

    Returns the number of rows, and a glob pattern that matches shards of this N only, so that shards which an earlier
    push left in the repository are not read too. Raises OSError.
    """
    folder.mkdir()
    shards: list[_Shard] = []
    rows = 0
    try:
        for table in tables:
            rows += table.num_rows
            while table.num_rows:
                if not shards or shards[-1].full(size):
                    for shard in shards[-1:]:
                        shard.close()
                    shards.append(_Shard(folder / f"{len(shards)}.part", table.schema))
                room = size.rows - shards[-1].rows
                shards[-1].write(table[:room])
                table = table[room:]
    finally:
        for shard in shards:
            shard.close()
    for number, shard in enumerate(shards):
        shard.path.rename(folder / f"train-{number:05d}-of-{len(shards):05d}.parquet")
    return rows, f"{folder.name}/train-*-of-{len(shards):05d}.parquet"


class _Shard:
    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet as pq

        self.path, self.rows = path, 0
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema)

    def full(self, size: ShardSize) -> bool:
        return self.rows >= size.rows or self._file.tell() >= size.bytes

    def write(self, table: Any) -> None:
        self._writer.write_table(table)
        self.rows += table.num_rows

    def close(self) -> None:
        if not self._file.closed:
            self._writer.close()
            self._file.close()
