"""Writing a run's data set: JSONL, Parquet, and the chat formats that trainers read; also the dropped rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from refed_dspy.data.rows import LINEAGE_COLUMNS, data_rows, dropped_rows
from refed_dspy.errors import ExportError, one_line
from refed_dspy.files import whole_file, write_lines
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import decisions_by_filter

if TYPE_CHECKING:
    import datasets

Row = Mapping[str, Any]
_ROW_GROUP = 1_000


def _messages(row: Row) -> Row:
    """The format of OpenAI and TRL. The improved response is the text to train on."""
    return {
        "messages": [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["improved_response"]},
        ]
    }


def _sharegpt(row: Row) -> Row:
    return {
        "conversations": [
            {"from": "human", "value": row["instruction"]},
            {"from": "gpt", "value": row["improved_response"]},
        ]
    }


def _alpaca(row: Row) -> Row:
    return {"instruction": row["instruction"], "input": "", "output": row["improved_response"]}


_FORMS: dict[str, Callable[[Row], Row]] = {
    "jsonl": lambda row: row,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}
FORMATS = ("jsonl", "parquet", "messages", "sharegpt", "alpaca")


def export(run_dir: Path, format: str, out: Path, *, force: bool = False) -> int:  # noqa: A002 — the flag's name
    """Write the samples that `run_dir` has so far to `out`, whole or not at all; returns how many.

    `jsonl` and `parquet` hold the paper's columns and the lineage; `messages`, `sharegpt` and `alpaca` are JSON
    lines of (instruction, improved response).

    Raises:
        ExportError: `out` exists and `force` is not set, it cannot be written, or there is no sample yet.
        RunDirError: no run there.
    """
    if format not in FORMATS:
        raise ExportError(f"format {one_line(format, 40)}: unknown; use {', '.join(FORMATS)}")
    with Ledger.read(run_dir) as ledger:
        try:
            if out.exists() and not force:
                raise ExportError(f"{out}: exists; name another file, or overwrite it with --force")
            if not ledger.kept():
                raise ExportError(f"{run_dir}: no samples yet; run or resume it first")
            rows = data_rows(ledger)
            with whole_file(out) as file:
                return _parquet(rows, file) if format == "parquet" else _lines(rows, format, file)
        except OSError as error:
            raise ExportError(f"{one_line(out, 200)}: cannot be written: {one_line(error.strerror or error)}") from None


def _lines(rows: Iterable[Row], format: str, file: IO[bytes]) -> int:  # noqa: A002
    count = 0
    for row in rows:
        file.write(json.dumps(_FORMS[format](row), ensure_ascii=False).encode() + b"\n")
        count += 1
    return count


def _parquet(rows: Iterable[Row], file: IO[bytes]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    remaining = iter(rows)
    with pq.ParquetWriter(file, _schema(pa)) as writer:
        while group := list(islice(remaining, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema=writer.schema))
            count += len(group)
    return count


def _schema(pa: Any) -> Any:
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
    }
    return pa.schema(list(columns.items()))


def to_dataset(run_dir: Path) -> datasets.Dataset:
    """The samples so far as a `datasets.Dataset`, lineage included."""
    import datasets
    import pyarrow as pa

    with Ledger.read(run_dir) as ledger:
        table = pa.Table.from_pylist(list(data_rows(ledger)), schema=_schema(pa))
    return datasets.Dataset(table)


def export_dropped(run_dir: Path, out: Path, *, force: bool = False) -> int:
    """Write the rows that the run's filters dropped to `out` as JSON lines, whole or not at all; returns how many.

    Raises:
        ExportError: `out` exists and `force` is not set, it cannot be written, or nothing was dropped.
        RunDirError: no run there.
    """
    with Ledger.read(run_dir) as ledger:
        if out.exists() and not force:
            raise ExportError(f"{out}: exists; name another file, or overwrite it with --force")
        if not any(counts["dropped"] for counts in decisions_by_filter(ledger)):
            raise ExportError(f"{run_dir}: no filter dropped anything; without --dropped, its samples are written")
        written = 0

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal written
            for row in dropped_rows(ledger):
                written += 1
                yield row

        write_lines(out, counted())
    return written
