"""Rows as Arrow tables of a thousand each, whatever their number: types of their columns, Parquet, and a
`datasets.Dataset` whose rows stay in a file."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from refed_dspy.data.rows import LINEAGE_COLUMNS, REASONING
from refed_dspy.data.sources import REMARKS
from refed_dspy.errors import ExportError, one_line
from refed_dspy.files import as_export_error

if TYPE_CHECKING:
    import datasets

Row = Mapping[str, Any]
ROW_GROUP = 1_000
_PLAIN = {"str": "string", "int": "int64", "float": "float64", "bool": "bool"}
"""Type of an extra column → its name in Arrow."""


def run_schema(extra: Mapping[str, str], *, reasoning: bool = False) -> Any:
    """The columns of a run's rows as a `pyarrow.Schema`. `extra`: `data.rows.extra_columns`."""
    import pyarrow as pa

    text, notes, number = pa.string(), pa.list_(pa.string()), pa.int64()
    analysis = pa.struct(
        [("original_strengths", notes), ("improvement_opportunities", notes), ("relevant_feedback", notes)]
    )
    strategy = pa.struct([("planned_changes", notes), ("rationale", text)])
    columns = {
        "instruction": text,
        "response": text,
        "analysis": analysis,
        "implementation_strategy": strategy,
        "improved_response": text,
        **dict.fromkeys(LINEAGE_COLUMNS, text),
        **dict.fromkeys(("sample", "round", "prompt_tokens", "completion_tokens"), number),
        "cost": pa.float64(),
        **{name: pa.type_for_alias(_PLAIN.get(kind, "string")) for name, kind in extra.items()},
        **({REASONING: text} if reasoning else {}),
    }
    return pa.schema(list(columns.items()))


def run_tables(rows: Iterable[Row], schema: Any, extra: Mapping[str, str]) -> Iterator[Any]:
    """A run's `rows` as tables. What an extra column holds is text where it has no plain type: JSON, unless it is a
    text."""
    return tables(rows, schema, {name for name, kind in extra.items() if kind not in _PLAIN})


def made_schema(rows: Iterable[Row]) -> tuple[Any, set[str]]:
    """The schema of rows of any columns, and the columns that are written as JSON: those whose values
    have no common type, and the filters' remarks. A column of a run's rows has its type there."""
    import pyarrow as pa

    types = common_types(rows, run_schema({}))
    as_text = {name for name, kind in types.items() if kind is None or name == REMARKS}
    return pa.schema([(name, pa.string() if name in as_text else kind) for name, kind in types.items()]), as_text


def common_types(rows: Iterable[Row], known: Any = None) -> dict[str, Any]:
    """Column → the Arrow type of all its values; None where they have none. `known`: a schema whose types go first."""
    import pyarrow as pa

    fitting = {} if known is None else {field.name: field.type for field in known}
    found: dict[str, Any] = {}
    for group in _groups(rows):
        for name in dict.fromkeys(name for row in group for name in row):
            values = [row.get(name) for row in group]
            if name in fitting and _array(pa, values, fitting[name]) is None:
                del fitting[name]
            found[name] = _with_type_of(pa, values, found.get(name, pa.null()))
    return {
        name: fitting.get(name, pa.string() if kind is not None and pa.types.is_null(kind) else kind)
        for name, kind in found.items()
    }


def _array(pa: Any, values: Sequence[Any], kind: Any = None) -> Any:
    """The values as an array; None where they have no common type, or not this one."""
    with suppress(pa.ArrowException, OverflowError):
        return pa.array(values, kind)
    return None


def _with_type_of(pa: Any, values: Sequence[Any], kind: Any) -> Any:
    """The type that holds these values and those of type `kind`; None where there is none."""
    array = None if kind is None else _array(pa, values)
    if array is None or array.type == kind:
        return array if array is None else kind
    with suppress(pa.ArrowException):
        both = [pa.schema([("", kind)]), pa.schema([("", array.type)])]
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    return None


def tables(rows: Iterable[Row], schema: Any, as_text: Collection[str] = ()) -> Iterator[Any]:
    """`rows` as tables of up to ROW_GROUP rows; the columns `as_text` as JSON, or as they are where they are texts.

    Raises ExportError for a value that its column cannot hold.
    """
    import pyarrow as pa

    for group in _groups(rows):
        arrays = []
        for name, kind in zip(schema.names, schema.types, strict=True):
            values = [row.get(name) for row in group]
            array = _array(pa, list(map(_as_text, values)) if name in as_text else values, kind)
            if array is None:
                raise ExportError(f"column {one_line(name, 80)}: holds values of several kinds; use jsonl")
            arrays.append(array)
        yield pa.Table.from_arrays(arrays, schema=schema)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while group := list(islice(remaining, ROW_GROUP)):
        yield group


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_parquet(made: Iterable[Any], file: IO[bytes], schema: Any) -> int:
    """The tables `made` as a Parquet file; returns how many rows."""
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(file, schema) as writer:
        for table in made:
            writer.write_table(table)
            count += table.num_rows
    return count


def mapped(made: Iterable[Any], schema: Any) -> datasets.Dataset:
    """The tables `made` as a data set whose rows lie in a file of the temporary folder (`TMPDIR`), mapped into memory,
    so that they take none; the file goes when this process ends. Raises ExportError where it cannot be written."""
    import datasets
    import pyarrow as pa

    with as_export_error(Path(tempfile.gettempdir())):
        path = Path(tempfile.mkdtemp(dir=_folder())) / "rows.arrow"  # a folder each: `map` puts its files beside it
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for table in made:
                writer.write_table(table)
    return datasets.Dataset.from_file(str(path))


@cache
def _folder() -> Path:
    """A folder for this process's data sets, which is removed when it ends."""
    path, process = Path(tempfile.mkdtemp(prefix="refed-")), os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # not when a child ends that was forked off
            shutil.rmtree(path, ignore_errors=True)

    atexit.register(remove)
    return path
