"""The result of filtering: kept and dropped rows, each with the filters' remarks, and the funnel; and how a filtering
stands, for `refed status`."""

from __future__ import annotations

import math
from base64 import b64encode
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from functools import cached_property
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import Any

from refed_dspy.data.dataset import DataSet
from refed_dspy.data.export import KeptRows
from refed_dspy.data.sources import REMARKS, simulated_rows
from refed_dspy.data.stored import DROPPED, ROWS, SOURCE, read_json
from refed_dspy.errors import RunDirError, one_line
from refed_dspy.files import write_json, write_lines, write_text
from refed_dspy.filters.base import Decision
from refed_dspy.filters.judge import ABSTAINED, FAILED
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.batches import all_batches
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent
from refed_dspy.ledger.states import FUNNEL, state_without_ledger
from refed_dspy.ledger.summary import USED
from refed_dspy.programs.judges import Judgements
from refed_dspy.runs.filter.apply import Decisions, FilteredRows, FilterPass
from refed_dspy.text import counted, table_lines

KEPT, UNDECIDED, TABLE = ROWS["filtering"], "undecided.jsonl", "funnel.txt"
OUTPUTS = (KEPT, DROPPED, UNDECIDED, FUNNEL, TABLE, SOURCE)
REPORT = "report.html"
"""What `refed report` writes beside them."""
READ = "read"
"""The funnel's name for reading the data, if some rows were not a pair of texts."""


@dataclass(frozen=True, repr=False)
class Filtering(KeptRows):
    """The result, written to `out`, and a sequence of the kept rows.

    `used`: None if no judge was asked; `stopped`: the cap that ended it, or empty."""

    out: Path
    data: DataSet
    filtered: FilteredRows
    used: Spent | None
    stopped: str
    source: Mapping[str, Any] = field(default_factory=dict)
    """What is noted of the data and the filters (`source.json`)."""

    def _describe(self) -> str:
        return f"{len(self.filtered.kept)} of {len(self.data.rows)} rows kept, in {self.out / KEPT}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return ("filter", "in", "kept", "dropped", "why"), (
            (entry["filter"], entry["in"], entry["kept"], entry["dropped"], _why(entry["reasons"]))
            for entry in self.funnel()
        )

    def kept(self) -> Iterator[dict[str, Any]]:
        """The kept rows as they were, with the scores that they passed with in `refed_filters`."""
        for row in self.filtered.kept:
            decided = ((each.label, each.decisions[row.number].score) for each in self.filtered.passes)
            scores = {label: score for label, score in decided if score is not None}
            yield _annotated(row.fields, {"row": row.number, "scores": scores})

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The dropped rows as they were; `refed_filters` says which filter dropped them, why, and by what score."""
        unread = ((number, row) for number, _, row in self.data.unread)
        for number, fields in merge(self._dropped_read(), unread, key=itemgetter(0)):
            label, decision = next(
                (each.label, each.decisions[number]) for each in self.passes if each.decisions.drops(number)
            )
            remarks = {
                "row": number,
                "filter": label,
                "reason": decision.reason,
                "score": decision.score,
                "detail": decision.detail,
            }
            yield _annotated(fields, remarks)

    def _dropped_read(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The rows that a filter dropped, with their numbers."""
        for place, number in enumerate(self.data.rows.numbers):
            if any(each.decisions.drops(number) for each in self.filtered.passes):
                yield number, self.data.rows[place].fields

    def undecided(self) -> Iterator[dict[str, Any]]:
        """The rows without a decision as they were, with their numbers, and why where a check by command failed."""
        why = ChainMap(*(each.decisions.failures for each in self.filtered.passes))
        for row in self.filtered.undecided:
            reason = {"reason": why[row.number]} if row.number in why else {}
            yield _annotated(row.fields, {"row": row.number, **reason})

    @cached_property
    def passes(self) -> list[FilterPass]:
        """The filters' passes; before them the reading of the data, if some rows were not a pair of texts."""
        if not self.data.unread:
            return [*self.filtered.passes]
        read = Decisions()
        for number in self.data.rows.numbers:
            read[number] = Decision(True)
        for number, reason, _ in self.data.unread:
            read[number] = Decision(False, reason)
        return [FilterPass(READ, len(read), read), *self.filtered.passes]

    def funnel(self) -> list[dict[str, Any]]:
        """An entry for each pass: how many rows came in, were kept, dropped (and why) or left undecided."""
        return [_entry(filter_pass) for filter_pass in self.passes]

    @property
    def problem(self) -> str:
        """In one line, which filter kept no row and why, or that the judge did not answer on some rows.

        Empty if all was decided and something kept, or if a cap ended the work.
        """
        if self.stopped:
            return ""
        for each in self.filtered.passes:
            if failures := [*each.decisions.failures.values()]:
                failed = f"{each.label} failed on {counted(len(failures), 'row')} (in {UNDECIDED}), the last: "
                return f"{failed}{failures[-1]}; run the same command to try again"
        if unanswered := len(self.filtered.undecided):
            return f"the judge gave no answer on {unanswered} rows (in {UNDECIDED}); run the same command to ask again"
        for entry in self.funnel():
            if not entry["kept"]:
                why = _why(entry["reasons"])
                return f"{entry['filter']} kept none of {entry['in']} rows ({why}); loosen or remove it"
        return ""

    def _doubts(self) -> list[str]:
        """A line for each filter whose judge decided on fewer than half of its rows, where no cap ended the work."""
        asked = () if self.stopped else (each for each in self.filtered.passes if not each.decisions.failures)
        judgements = {each.label: _judgements(each) for each in asked}
        return [f"{label}: {warning}" for label, judged in judgements.items() if (warning := judged.warning())]

    def lines(self) -> list[str]:
        """The funnel, the cost and the counts, for a terminal."""
        rows = [["filter", "in", "kept", "dropped", "why"]]
        for entry in self.funnel():
            why = [_why(entry["reasons"])] + [f"{entry['undecided']} undecided"] * bool(entry["undecided"])
            counts = [str(entry[name]) for name in ("in", "kept", "dropped")]
            rows.append([one_line(entry["filter"], 40), *counts, ", ".join(filter(None, why))])
        lines = [*self._doubts(), *table_lines(rows)]
        lines += [
            f"{each['filter']}: of the kept, {_why(each['remarks'])}" for each in self.funnel() if each["remarks"]
        ]
        if self.data.unread:
            lines.append(f"{READ}: rows that are no pair of texts")
        for filter_pass in self.filtered.passes:
            passed = sum(number for outcome, number in filter_pass.decisions.tallied().items() if outcome.kept)
            if filter_pass.keep is not None and passed < filter_pass.keep:
                lines.append(f"{filter_pass.label}: {passed} of the {filter_pass.keep} rows to keep passed")
        if self.used is not None:
            lines.append(str(self.used))
        if self.stopped:
            undecided = counted(len(self.filtered.undecided), "row")
            lines.append(
                f"stopped: {self.stopped} is reached with {undecided} undecided; raise it and run the same command to "
                "continue"
            )
        return [*lines, self._describe()]


def _judgements(filter_pass: FilterPass) -> Judgements:
    """What became of its rows, where a judge decides: a row that is still undecided is a failure."""
    tallied = filter_pass.decisions.tallied()
    abstained, refused = (
        sum(number for outcome, number in tallied.items() if outcome.reason == reason) for reason in (ABSTAINED, FAILED)
    )
    decided = tallied.total() - abstained - refused
    failed = filter_pass.rows_in - decided - abstained
    details = (each.detail for each in filter_pass.decisions.values() if each.reason in {ABSTAINED, FAILED})
    return Judgements(decided, abstained, failed, next(details, "no answer") if abstained + refused else "no answer")


def _entry(filter_pass: FilterPass) -> dict[str, Any]:
    """One pass's line of the funnel; reasons of drops, and remarks on kept rows, by count, equal counts by name."""
    reasons, remarks = Counter[str](), Counter[str]()
    kept = dropped = 0
    for outcome, number in filter_pass.decisions.tallied().items():
        if outcome.kept:
            kept += number
            for remark in filter(None, outcome.remark.split("; ")):
                remarks[remark] += number
        else:
            dropped += number
            reasons[outcome.reason] += number
    undecided = filter_pass.rows_in - kept - dropped
    counts = {"in": filter_pass.rows_in, "kept": kept, "dropped": dropped, "undecided": undecided}
    return {"filter": filter_pass.label, **counts, "reasons": _by_count(reasons), "remarks": _by_count(remarks)}


def _by_count(reasons: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _why(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {one_line(reason, 60)}" for reason, count in reasons.items())


def _annotated(fields: Mapping[str, Any], remarks: dict[str, Any]) -> dict[str, Any]:
    """A row as it was, and the filters' remarks on it; in them, as `before`, those of an earlier filtering."""
    before = {"before": fields[REMARKS]} if REMARKS in fields else {}
    row: dict[str, Any] = _as_json({**fields, REMARKS: {**remarks, **before}})
    return row


def _as_json(value: Any) -> Any:
    """The value in JSON types: dates in ISO format, bytes in Base64, NaN and infinities as None."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {"" if key is None else str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return b64encode(value).decode()
    if hasattr(value, "tolist"):  # numpy's scalars and arrays
        return _as_json(value.tolist())
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, Iterable):
        return [_as_json(inner) for inner in value]
    return value.isoformat() if isinstance(value, date | time) else str(value)


def write_filtering(filtering: Filtering) -> None:
    """Write rows and funnel into the folder, each file whole or not at all."""
    if read_json(filtering.out / SOURCE) not in ({}, filtering.source):  # the page shows what was here before
        (filtering.out / REPORT).unlink(missing_ok=True)
    write_json(filtering.out / FUNNEL, filtering.funnel())  # first: it says whose the others are
    write_lines(filtering.out / KEPT, filtering.kept())
    write_lines(filtering.out / DROPPED, filtering.dropped())
    if filtering.filtered.undecided:
        write_lines(filtering.out / UNDECIDED, filtering.undecided())
    else:
        (filtering.out / UNDECIDED).unlink(missing_ok=True)
    write_text(filtering.out / TABLE, filtering.lines())
    write_json(filtering.out / SOURCE, filtering.source)


_NOTHING_PAID = {
    "failures": [], "usage": {}, "used": dict.fromkeys(USED, 0), "models": [], "cost": 0.0, "in_flight_cost": 0.0,
    "unpriced": 0, "caps": {}, "simulated": "", "batches": [],
}  # fmt: skip


def filtering_status(folder: Path) -> dict[str, Any]:
    """The state of the filtering in `folder`, whose funnel is written, in JSON types: `rows`, how many of them were
    `kept` and are `undecided`, and the `filters` with their counts and reasons; the rest as `status_of`.

    Raises RunDirError: damaged.
    """
    passes = read_json(folder / FUNNEL)
    try:
        counts = {
            "rows": passes[0]["in"],
            "kept": passes[-1]["kept"],
            "undecided": sum(each["undecided"] for each in passes),
            "filters": passes,
            **({"simulated": note} if (note := simulated_rows(folder)) else {}),
        }
    except (LookupError, TypeError):
        raise RunDirError(f"{one_line(folder / FUNNEL, 200)}: is no funnel of refed filter; filter again") from None
    if not (folder / FILE).is_file():
        return {"work": "filtering", **state_without_ledger(folder), "asked": 0, **_NOTHING_PAID, **counts}
    with Ledger.read(folder) as ledger:
        return {**status_of(ledger), "batches": all_batches(ledger), **counts}
