"""Writing the rows of a run, a filtering or a recycling: JSONL, Parquet, and the formats that trainers read; also the
dropped rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refed_dspy.config.named import FORMATS as OWN_FORMATS
from refed_dspy.config.named import is_named, raised, resolve
from refed_dspy.data.dataset import load_dataset
from refed_dspy.data.formats import FORMS, PAIRED, THINKING, Pairs, Row, margins_of
from refed_dspy.data.rows import REASONING, data_rows, dropped_rows, extra_columns
from refed_dspy.data.sources import as_trained, margin_of, run_behind
from refed_dspy.data.stored import DROPPED, NOTES, ROWS, json_lines, rows_in, work_in
from refed_dspy.data.tables import made_schema, mapped, run_schema, run_tables, tables, write_parquet
from refed_dspy.errors import ExportError, RunDirError, briefly, one_line
from refed_dspy.files import as_export_error, check_output, whole_file, write_lines
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import named_work
from refed_dspy.ledger.summary import decisions_by_filter

if TYPE_CHECKING:
    import datasets

Through = Callable[[Iterable[Any], int | None], Iterable[Any]]
"""Gives rows back one by one; the number is how many there are, None where that is not known."""
FORMATS = ("jsonl", "parquet", *[name for name in FORMS if name != "jsonl"], *PAIRED)


def unseen(rows: Iterable[Any], total: int | None) -> Iterable[Any]:  # noqa: ARG001
    """A `Through` that shows nothing."""
    return rows


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
    through: Through = unseen,
) -> Exported:
    """Write the samples that the run in `run_dir` has so far, or the rows that a filtering or a recycling kept, to
    `out`, whole or not at all.

    `jsonl` and `parquet` hold the paper's columns and the lineage; `messages`, `sharegpt`, `alpaca` and
    `prompt-completion` are JSON lines of (instruction, improved response); `preference` and `kto` are JSON lines of
    pairs (`data.formats.Pairs`); any other name is that of a function from a row to a line's mapping (`config.named`).
    With `reasoning`, also what the model thought before the improved response, as a column, or as the message's
    `reasoning_content`. The rows pass `through`, to show how many have.

    Raises:
        ExportError: `out` exists and `force` is not set, it cannot be written, there is no sample yet, or no pair.
        RunDirError: no such work there.
    """
    form = FORMS.get(format)
    if format not in FORMATS:
        if not is_named(format, OWN_FORMATS):
            raise ExportError(f"format {one_line(format, 40)}: unknown; use one of {', '.join(FORMATS)}")
        form = _own_form(format)
    if reasoning and format in FORMATS and format not in THINKING:
        raise ExportError(f"format {format}: cannot contain reasoning; use {', '.join(THINKING)}")
    if (work := work_in(run_dir)) in ROWS:
        _check_free(out, force, folder_of=run_dir)
        return _export_made(run_dir, work, format, form, out, reasoning=reasoning, through=through)
    if work != "run":
        raise RunDirError(f"{run_dir}: contains {named_work(work)}; only a run, filtered or recycled rows are exported")
    with _ledger_for(run_dir, out, force) as ledger:
        if not ledger.kept():
            raise ExportError(f"{run_dir}: no samples yet; run or resume it first")
        if format in PAIRED:
            pairs = Pairs.of_run(ledger, format)
            return _export_pairs(replace(pairs, rows=through(pairs.rows, ledger.kept())), out)
        thoughts = Counter[bool]()
        rows = _counting(through(data_rows(ledger, reasoning=reasoning), ledger.kept()), thoughts)
        if form is not None:
            count = write_lines(out, map(form, rows))
        else:
            extra = extra_columns(ledger)
            schema = run_schema(extra, reasoning=reasoning)
            with whole_file(out) as file:
                count = write_parquet(run_tables(rows, schema, extra), file, schema)
        return Exported(count, f"{thoughts[True]} with reasoning" if reasoning else "")


def _export_made(
    folder: Path,
    work: str,
    format: str,  # noqa: A002
    form: Callable[[Row], Row] | None,
    out: Path,
    *,
    reasoning: bool,
    through: Through,
) -> Exported:
    """Write the rows that a filtering or a recycling kept: `jsonl` and `parquet` as they are, other formats of what
    they are to a trainer."""
    made = partial(rows_in, folder, work)
    if next(made(), None) is None:
        raise ExportError(f"{folder}: no row was kept, so there is nothing to export")
    if format == "jsonl":
        return Exported(write_lines(out, through(made(), None)))
    if format == "parquet":
        schema, as_text = made_schema(made())
        with as_export_error(out), whole_file(out) as file:
            return Exported(write_parquet(tables(through(made(), None), schema, as_text), file, schema))
    rows = through(load_dataset(folder).rows, None)
    if format in PAIRED:
        with run_behind(folder) as ledger:
            margins = {} if ledger is None else margins_of(ledger)
        judged = ((as_trained(row), margin_of(row) or margins.get(row.fields.get("sample", 0))) for row in rows)
        return _export_pairs(Pairs(judged, format), out)
    assert form is not None
    thoughts, without = Counter[bool](), {} if reasoning else {REASONING: ""}
    trained = ({**as_trained(row), **without} for row in rows)
    count = write_lines(out, map(form, _counting(trained, thoughts)))
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


def _export_pairs(pairs: Pairs, out: Path) -> Exported:
    lines = iter(pairs)
    if (first := next(lines, None)) is None:
        raise ExportError(f"{pairs.format}: no pairs to write; {pairs.told()}")
    written = write_lines(out, chain([first], lines))
    apart = f"{written} lines: the answers of a pair apart" if written != pairs.count else ""
    return Exported(pairs.count, "; ".join(filter(None, (apart, pairs.told()))))


@contextmanager
def _ledger_for(run_dir: Path, out: Path, force: bool) -> Iterator[Ledger]:
    """The run's ledger, for writing to `out`. Raises ExportError where that exists or cannot be written."""
    with Ledger.read(run_dir) as ledger, as_export_error(out):
        _check_free(out, force)
        yield ledger


def _check_free(out: Path, force: bool, folder_of: Path | None = None) -> None:
    """Raises ExportError where the file is there and `force` is not set, where it belongs to a ledger, or to the rows
    of the filtering or recycling in `folder_of`."""
    check_output(out, *([] if folder_of is None else [folder_of / name for name in (*ROWS.values(), *NOTES)]))
    with as_export_error(out):
        if out.exists() and out.is_file() and not force:
            raise ExportError(f"{out}: already exists; choose another file or overwrite it with force=True")


def to_dataset(run_dir: Path) -> datasets.Dataset:
    """The samples so far as a `datasets.Dataset`, lineage included; see `mapped`."""
    with Ledger.read(run_dir) as ledger:
        extra = extra_columns(ledger)
        schema = run_schema(extra)
        return mapped(run_tables(data_rows(ledger), schema, extra), schema)


def export_dropped(run_dir: Path, out: Path, *, force: bool = False) -> int:
    """Write the rows that a run's filters, a filtering or a selective recycling dropped to `out` as JSON lines, whole
    or not at all; returns how many.

    Raises:
        ExportError: `out` exists and `force` is not set, it cannot be written, or nothing was dropped.
        RunDirError: no run there.
    """
    if (work := work_in(run_dir)) in ROWS:
        _check_free(out, force, folder_of=run_dir)
        if next(json_lines(run_dir / DROPPED), None) is None:
            raise ExportError(f"{run_dir}: nothing was dropped")
        return write_lines(out, json_lines(run_dir / DROPPED))
    if work != "run":
        raise RunDirError(f"{run_dir}: contains {named_work(work)}, not a run")
    with _ledger_for(run_dir, out, force) as ledger:
        if not any(counts["dropped"] for counts in decisions_by_filter(ledger)):
            raise ExportError(f"{run_dir}: filters dropped nothing")
        return write_lines(out, dropped_rows(ledger))
