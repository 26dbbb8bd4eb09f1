"""The data as Parquet shards, with private values removed from its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from refed_dspy.data.rows import DROPPED_COLUMNS
from refed_dspy.data.sources import ENDPOINTS, REMARKS
from refed_dspy.data.tables import made_schema, tables
from refed_dspy.plugins.share.redact import public_detail, public_endpoint, public_model, public_source

TEACHERS = ("teacher", "response_teacher", "instruction_teacher")
_CLEANED: Mapping[str, Callable[[str | None], str]] = {
    **dict.fromkeys(TEACHERS, public_model),
    **dict.fromkeys(ENDPOINTS, public_endpoint),
    "reference_source": public_source,
}
_GROUP = 1_000
SHARD_ROWS, SHARD_BYTES = 100_000, 256 * 2**20
"""A shard ends at so many rows, or once it has so many bytes, whichever comes first."""


def cleaned(table: Any) -> Any:
    """A run's rows, or what was made of them, as a `pyarrow.Table` that may be published."""
    import pyarrow as pa

    for name, clean in _CLEANED.items():
        if name in table.column_names:
            values = pa.array([clean(value) for value in table[name].to_pylist()], pa.string())
            table = table.set_column(table.column_names.index(name), name, values)
    return table


def tables_of(rows: Callable[[], Iterable[Mapping[str, Any]]]) -> Iterator[Any]:
    """Rows of a filtering or a recycling as `pyarrow.Table`s of up to 1,000, ready to publish. They are read twice."""
    schema, as_text = made_schema(map(_public_remarks, rows()))
    made = tables(map(_public_remarks, rows()), schema, as_text)
    # a run's rows: in other data, such columns hold other things
    return map(cleaned, made) if "response_teacher" in schema.names else made


def _public_remarks(row: Mapping[str, Any]) -> Mapping[str, Any]:
    remarks = row.get(REMARKS)
    if not isinstance(remarks, Mapping) or "detail" not in remarks:
        return row
    return {**row, REMARKS: {**remarks, "detail": public_detail(remarks.get("reason"), remarks["detail"])}}


def dropped_tables(rows: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    """Dropped rows (`data.rows.dropped_rows`) as `pyarrow.Table`s of up to 1,000, ready to publish."""
    import pyarrow as pa

    kinds = {"round": pa.int64(), "score": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in DROPPED_COLUMNS])
    remaining = iter(rows)
    while group := list(islice(remaining, _GROUP)):
        group = [{**row, "detail": public_detail(row["reason"], row["detail"])} for row in group]
        yield pa.Table.from_pylist(group, schema=schema)


def write_shards(tables: Iterable[Any], folder: Path) -> tuple[int, str]:
    """Write `tables` into `folder`, which it makes, as `train-00000-of-0000N.parquet`.

    Returns the number of rows, and a glob pattern that matches shards of this N only, so that shards which an earlier
    push left in the repository are not read too. Raises OSError.
    """
    folder.mkdir()
    shards: list[_Shard] = []
    try:
        for table in tables:
            while table.num_rows:
                if not shards or shards[-1].closed:
                    shards.append(_Shard(folder / f"{len(shards)}.part", table.schema))
                table = shards[-1].take(table)
    finally:
        for shard in shards:
            shard.close()
    for number, shard in enumerate(shards):
        shard.path.rename(folder / f"train-{number:05d}-of-{len(shards):05d}.parquet")
    return sum(shard.rows for shard in shards), f"{folder.name}/train-*-of-{len(shards):05d}.parquet"


class _Shard:
    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet as pq

        self.path, self.rows = path, 0
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(self._file, schema)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def take(self, table: Any) -> Any:
        """Write the first rows of `table`, as many as there is room for, and close the shard when it is full. Returns
        the other rows."""
        room = SHARD_ROWS - self.rows
        self._writer.write_table(table[:room])
        self.rows += min(room, table.num_rows)
        if self.rows == SHARD_ROWS or self._file.tell() >= SHARD_BYTES:
            self.close()
        return table[room:]

    def close(self) -> None:
        if not self.closed:
            self._writer.close()
            self._file.close()
