"""Writing a run's data set: JSONL, Parquet, and the chat formats that trainers read; also the dropped rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from refed_dspy.config.named import FORMATS as OWN_FORMATS
from refed_dspy.config.named import is_named, raised, resolve
from refed_dspy.data.formats import FORMS, PAIRED, THINKING, Pairs, Row
from refed_dspy.data.rows import LINEAGE_COLUMNS, REASONING, data_rows, dropped_rows, extra_columns
from refed_dspy.errors import ExportError, briefly, one_line
from refed_dspy.files import as_export_error, whole_file, write_lines
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import decisions_by_filter

if TYPE_CHECKING:
    import datasets

_ROW_GROUP = 1_000


FORMATS = ("jsonl", "parquet", *[name for name in FORMS if name != "jsonl"], *PAIRED)


@dataclass(frozen=True)
class Exported:
    """What was written: how many samples or pairs, and what to know of them, on one line."""

    count: int
    told: str = ""


@briefly
def export(
    run_dir: Path,
    format: str,  # noqa: A002 — the flag's name
    out: Path,
    *,
    force: bool = False,
    reasoning: bool = False,
) -> Exported:
    """Write the samples that `run_dir` has so far to `out`, whole or not at all.

    `jsonl` and `parquet` hold the paper's columns and the lineage; `messages`, `sharegpt`, `alpaca` and
    `prompt-completion` are JSON lines of (instruction, improved response); `preference` and `kto` are JSON lines of
    pairs (`data.formats.Pairs`); any other name is that of a function from a row to a line's mapping (`config.named`).
    With `reasoning`, also what the model thought before the improved response, as a column, or as the message's
    `reasoning_content`.

    Raises:
        ExportError: `out` exists and `force` is not set, it cannot be written, there is no sample yet, or no pair.
        RunDirError: no run there.
    """
    form = FORMS.get(format)
    if format not in FORMATS:
        if not is_named(format, OWN_FORMATS):
            raise ExportError(f"format {one_line(format, 40)}: unknown; use one of {', '.join(FORMATS)}")
        form = _own_form(format)
    if reasoning and format in FORMATS and format not in THINKING:
        raise ExportError(f"format {format}: cannot contain reasoning; use {', '.join(THINKING)}")
    with _ledger_for(run_dir, out, force) as ledger:
        if not ledger.kept():
            raise ExportError(f"{run_dir}: no samples yet; run or resume it first")
        if format in PAIRED:
            return _export_pairs(ledger, format, out)
        thoughts = Counter[bool]()
        rows = _counting(data_rows(ledger, reasoning=reasoning), thoughts)
        if form is not None:
            count = write_lines(out, map(form, rows))
        else:
            with whole_file(out) as file:
                count = _parquet(rows, file, extra_columns(ledger), reasoning=reasoning)
        return Exported(count, f"{thoughts[True]} with reasoning" if reasoning else "")


def _counting(rows: Iterable[dict[str, Any]], thoughts: Counter[bool]) -> Iterator[dict[str, Any]]:
    """`rows`, counted by whether reasoning is recorded for them."""
    for row in rows:
        thoughts[bool(row.get(REASONING))] += 1
        yield row


def _own_form(name: str) -> Callable[[Row], Row]:
    """The caller's own format of this name: a function from a row to what its line holds."""
    form = resolve(name, OWN_FORMATS, "format")
    if not callable(form):
        raise ExportError(f"format {one_line(name, 80)}: not a function; it must turn a row into a mapping")

    def checked(row: Row) -> Row:
        where = f"format {one_line(name, 80)}: sample {row['sample']}"
        try:
            line = form(row)
        except Exception as error:
            raise ExportError(f"{where}: {raised(error)}") from error
        if not isinstance(line, Mapping):
            raise ExportError(f"{where}: returned a {type(line).__name__}; it must return a mapping")
        try:
            json.dumps(line, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ExportError(f"{where}: the result cannot be written as JSON: {one_line(error, 160)}") from None
        return line

    return checked


def _export_pairs(ledger: Ledger, format: str, out: Path) -> Exported:  # noqa: A002
    pairs = Pairs(ledger, format)
    lines = iter(pairs)
    if (first := next(lines, None)) is None:
        raise ExportError(f"{format}: no pairs to write; {pairs.told()}")
    write_lines(out, chain([first], lines))
    return Exported(pairs.count, pairs.told())


@contextmanager
def _ledger_for(run_dir: Path, out: Path, force: bool) -> Iterator[Ledger]:
    """The run's ledger, for writing to `out`. Raises ExportError where that exists or cannot be written."""
    with Ledger.read(run_dir) as ledger, as_export_error(out):
        if out.exists() and out.is_file() and not force:
            raise ExportError(f"{out}: already exists; choose another file or overwrite it with force=True")
        yield ledger


def _parquet(rows: Iterable[Row], file: IO[bytes], extra: Mapping[str, str], *, reasoning: bool) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    remaining = iter(rows)
    schema = _schema(pa, extra, reasoning=reasoning)
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, _ROW_GROUP)):
            writer.write_table(_table(pa, group, schema, extra))
            count += len(group)
    return count


def _table(pa: Any, rows: Sequence[Row], schema: Any, extra: Mapping[str, str]) -> Any:
    """`rows` as a table. What an extra column holds is text where it has no plain type: JSON, unless it is a text."""
    as_text = [name for name, kind in extra.items() if kind not in _PLAIN]
    changed = [{**row, **{name: _as_text(row[name]) for name in as_text}} for row in rows]
    return pa.Table.from_pylist(changed, schema=schema)


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_PLAIN = {"str": "string", "int": "int64", "float": "float64", "bool": "bool"}
"""Type of an extra column → its name in Arrow."""


def _schema(pa: Any, extra: Mapping[str, str], *, reasoning: bool = False) -> Any:
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


def to_dataset(run_dir: Path) -> datasets.Dataset:
    """The samples so far as a `datasets.Dataset`, lineage included."""
    import datasets
    import pyarrow as pa

    with Ledger.read(run_dir) as ledger:
        extra = extra_columns(ledger)
        table = _table(pa, list(data_rows(ledger)), _schema(pa, extra), extra)
    return datasets.Dataset(table)


def export_dropped(run_dir: Path, out: Path, *, force: bool = False) -> int:
    """Write the rows that the run's filters dropped to `out` as JSON lines, whole or not at all; returns how many.

    Raises:
        ExportError: `out` exists and `force` is not set, it cannot be written, or nothing was dropped.
        RunDirError: no run there.
    """
    with _ledger_for(run_dir, out, force) as ledger:
        if not any(counts["dropped"] for counts in decisions_by_filter(ledger)):
            raise ExportError(f"{run_dir}: filters dropped nothing")
        return write_lines(out, dropped_rows(ledger))
