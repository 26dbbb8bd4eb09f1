"""Writing the rows of a run, a filtering or a recycling: JSONL, Parquet, and the formats that trainers read; also the
dropped rows; and a result's kept rows as a sequence, a data frame and a data set."""

from __future__ import annotations

import json
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, overload

from refed_dspy.config.named import FORMATS as OWN_FORMATS
from refed_dspy.config.named import is_named, raised, resolve
from refed_dspy.data.dataset import OnDisk, load_dataset
from refed_dspy.data.rows import REASONING, data_rows, dropped_rows, extra_columns
from refed_dspy.data.sources import as_trained, margin_of, run_behind
from refed_dspy.data.stored import DROPPED, NOTES, ROWS, json_lines, rows_in, work_in
from refed_dspy.data.tables import common_types, made_schema, mapped, run_schema, run_tables, tables, write_parquet
from refed_dspy.errors import FORCE, ExportError, RunDirError, briefly, one_line
from refed_dspy.files import as_export_error, check_output, path_of, whole_file, write_lines
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import named_work, state_in
from refed_dspy.ledger.summary import decisions_by_filter
from refed_dspy.text import Shown

if TYPE_CHECKING:
    import datasets
    import pandas as pd

Row = Mapping[str, Any]
_MARGINS = """
SELECT s.seq, d.score FROM decisions d JOIN samples s ON s.instruction = d.instruction
WHERE d.filter = 'judge' AND d.kept
"""
THINKING = ("jsonl", "parquet", "messages", "prompt-completion")
"""Formats that have a place for reasoning."""
PAIRED = ("preference", "kto")
"""Formats of pairs: the improved response is chosen, the plain one rejected."""
Through = Callable[[Iterable[Any], int | None], Iterable[Any]]
"""Gives rows back one by one; the number is how many there are, None where that is not known."""


def messages(row: Row) -> Row:
    """The format of OpenAI and TRL. The improved response is the text to train on."""
    return {"messages": [*_prompt(row), *answer_of(row["improved_response"], row.get(REASONING, ""))]}


def sharegpt(row: Row) -> Row:
    """The format of ShareGPT."""
    said = [("system", row["system"])] if row["system"] else []
    said += [("human", row["instruction"]), ("gpt", row["improved_response"])]
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in said]}


def alpaca(row: Row) -> Row:
    """The format of Alpaca; a system prompt in a column of its own, where there is one."""
    system = {"system": row["system"]} if row["system"] else {}
    return {"instruction": row["instruction"], "input": "", "output": row["improved_response"], **system}


def prompt_completion(row: Row) -> Row:
    """TRL's conversational prompt and completion."""
    return {"prompt": _prompt(row), "completion": answer_of(row["improved_response"], row.get(REASONING, ""))}


def _prompt(row: Row) -> list[dict[str, str]]:
    return prompt_of(row["instruction"], row["system"])


def prompt_of(instruction: str, system: str) -> list[dict[str, str]]:
    """An instruction as messages, under its system prompt where it has one."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": instruction}]


def answer_of(text: str, reasoning: str = "") -> list[dict[str, str]]:
    """A response as messages, with what was thought before it where that is given."""
    return [{"role": "assistant", **({"reasoning_content": reasoning} if reasoning else {}), "content": text}]


FORMS: dict[str, Callable[[Row], Row]] = {
    "jsonl": lambda row: row,
    "messages": messages,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "prompt-completion": prompt_completion,
}
"""Formats with a line a sample."""


@dataclass
class Pairs:
    """The pairs of rows that have both responses. What was left out, and how long the texts are, is counted while they
    are read.

    A row whose two texts are equal makes no pair. Those that a filter `judge` kept won in both orders.
    """

    rows: Iterable[tuple[Row, float | None]]
    """Each with the judge's margin, None where no judge compared."""
    format: str
    """`preference`: TRL's conversational pairs, with the judge's margin: above 0, at most 2; 0 where no judge compared,
    so that every file's column has one type. `kto`: its unpaired rows, the improved response labelled True and the
    plain one False."""
    unchanged: int = 0
    """Rows left out, since the improvement left them as they were."""
    alone: int = 0
    """Rows left out, since they have one response."""
    unjudged: int = 0
    """Pairs that no judge compared."""
    count: int = 0
    _longer: array[float] = field(default_factory=lambda: array("d"))

    @classmethod
    def of_run(
        cls,
        ledger: Ledger,
        format: str,  # noqa: A002
        read: Callable[[Ledger], Iterable[Row]] = data_rows,
    ) -> Pairs:
        """The pairs of a run, whose rows `read` gives. Raises ExportError where its program improves no responses."""
        if ledger.meta("final_stage") == "response_generation":
            raise ExportError(f"{format}: this run's program does not improve responses, so there are no pairs")
        margins = margins_of(ledger)
        return cls(((row, margins.get(row["sample"])) for row in read(ledger)), format)

    def __iter__(self) -> Iterator[Row]:
        for row, margin in self._kept():
            prompt, better, worse = _prompt(row), answer_of(row["improved_response"]), answer_of(row["response"])
            if self.format == "preference":
                yield {"prompt": prompt, "chosen": better, "rejected": worse, "margin": margin or 0.0}
            else:
                yield {"prompt": prompt, "completion": better, "label": True}
                yield {"prompt": prompt, "completion": worse, "label": False}

    def counted(self) -> Pairs:
        """The same once all rows have been read, for what is counted of them."""
        for _ in self._kept():
            pass
        return self

    def _kept(self) -> Iterator[tuple[Row, float | None]]:
        for row, margin in self.rows:
            if not row["response"]:
                self.alone += 1
            elif row["improved_response"].strip() == row["response"].strip():
                self.unchanged += 1
            else:
                self.count += 1
                self.unjudged += margin is None
                self._longer.append(len(row["improved_response"]) / len(row["response"]))
                yield row, margin

    def told(self) -> str:
        """What to know of the pairs, on one line."""
        parts = [f"{self.unjudged} unjudged"] if self.unjudged else []
        if self._longer:
            parts.append(f"chosen {median(self._longer):.2f} times as many characters as rejected (median)")
        if self.unchanged:
            parts.append(f"left out {self.unchanged} unchanged")
        if self.alone:
            parts.append(f"left out {self.alone} without a plain response")
        return "; ".join(parts)


def margins_of(ledger: Ledger) -> dict[int, float]:
    """A run's sample → how clearly its filter `judge` preferred the improved response."""
    return dict(ledger.db.execute(_MARGINS))


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
    pairs (`Pairs`); any other name is that of a function from a row to a line's mapping (`config.named`).
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
            raise ExportError(f"{out}: already exists; choose another file or overwrite it with " + FORCE)


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
