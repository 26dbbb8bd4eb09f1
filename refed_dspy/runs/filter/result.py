"""What came of filtering: kept and dropped rows, each with what was said of it, and the funnel."""

from __future__ import annotations

import math
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any

from refed_dspy.data.dataset import DataSet
from refed_dspy.errors import one_line
from refed_dspy.files import write_json, write_lines, write_text
from refed_dspy.filters.base import Decision
from refed_dspy.ledger.spending import Spent
from refed_dspy.runs.filter.sift import Sifted
from refed_dspy.text import aligned

KEPT, DROPPED, UNDECIDED, FUNNEL = "kept.jsonl", "dropped.jsonl", "undecided.jsonl", "funnel"
OUTPUTS = (KEPT, DROPPED, UNDECIDED, f"{FUNNEL}.json", f"{FUNNEL}.txt")
SAID = "refed_filters"
"""The column that filters' words stand in, beside the row's own; what an earlier filtering said is in it: `before`."""
READ = "read"
"""What the funnel calls the reading of the rows, where some were no pair of texts."""


@dataclass(frozen=True)
class Filtering:
    """What came of it, written to `out`. `used` is None where nobody was asked; `stopped` the cap that ended it."""

    out: Path
    data: DataSet
    sifted: Sifted
    used: Spent | None
    stopped: str

    def kept(self) -> Iterator[dict[str, Any]]:
        """The kept rows as they stood, and in `refed_filters` the scores that they passed with."""
        scores: defaultdict[int, dict[str, Any]] = defaultdict(dict)
        for stage in self.sifted.stages:
            for number, said in stage.decisions.items():
                if said.kept and said.score is not None:
                    scores[number][stage.label] = said.score
        for row in self.sifted.kept:
            yield _told(row.fields, {"row": row.number, "scores": scores[row.number]})

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The dropped rows as they stood, and in `refed_filters` which filter dropped them, why, and by what score."""
        fields = {row.number: row.fields for row in self.data.rows}
        lost = [(number, fields[number], label, said) for number, label, said in self.sifted.dropped()]
        lost += [(number, row, READ, Decision(False, reason)) for number, reason, row in self.data.unread]
        for number, row, label, said in sorted(lost, key=lambda one: one[0]):
            told = {"row": number, "filter": label, "reason": said.reason, "score": said.score, "detail": said.detail}
            yield _told(row, told)

    def undecided(self) -> Iterator[dict[str, Any]]:
        """The rows without a decision as they stood, with their numbers."""
        for row in self.sifted.undecided:
            yield _told(row.fields, {"row": row.number})

    def funnel(self) -> list[dict[str, Any]]:
        """A filter each: how many rows came, were kept, dropped or left undecided, and dropped by reason. Before them,
        where some rows were no pair of texts, the reading of them."""
        told = []
        if lost := len(self.data.unread):
            rows = len(self.data.rows)
            told.append(_stage(READ, rows + lost, rows, Counter(reason for _, reason, _ in self.data.unread)))
        for stage in self.sifted.stages:
            reasons = Counter(said.reason for said in stage.decisions.values() if not said.kept)
            told.append(_stage(stage.label, stage.came, len(stage.decisions) - reasons.total(), reasons))
        return told

    @property
    def fruitless(self) -> str:
        """What a person must know who waits for rows, in one line: which filter kept none and why, or that the judge
        did not answer on some. Empty where all was decided and something kept, or where a cap ended the work."""
        if self.stopped:
            return ""
        if unheard := len(self.sifted.undecided):
            return f"the judge did not answer on {unheard} rows, now in {UNDECIDED}; the same command asks it again"
        for told in self.funnel():
            if not told["kept"]:
                why = _why(told["reasons"])
                return f"{told['filter']} kept none of {told['in']} rows ({why}); loosen it, or take it out"
        return ""

    def lines(self) -> list[str]:
        """All of it for a terminal."""
        rows = [["filter", "in", "kept", "dropped", "why"]]
        for told in self.funnel():
            why = [_why(told["reasons"])] + [f"{told['undecided']} undecided"] * bool(told["undecided"])
            counts = [str(told[name]) for name in ("in", "kept", "dropped")]
            rows.append([one_line(told["filter"], 40), *counts, ", ".join(filter(None, why))])
        lines = aligned(rows)
        if self.data.unread:
            lines.append(f"{READ}: rows that are no pair of texts")
        for stage in self.sifted.stages:
            passed = sum(said.kept for said in stage.decisions.values())
            if stage.keep is not None and passed < stage.keep:
                lines.append(f"{stage.label}: {passed} of the {stage.keep} rows to keep passed")
        if self.used is not None:
            lines.append(str(self.used))
        if self.stopped:
            lines.append(
                f"stopped: {self.stopped} is reached with {len(self.sifted.undecided)} rows undecided; raise it, and "
                "the same command goes on"
            )
        return [*lines, f"{len(self.sifted.kept)} of {len(self.data.rows)} rows kept, in {self.out / KEPT}"]


def _stage(label: str, came: int, kept: int, reasons: Counter[str]) -> dict[str, Any]:
    by_count = dict(sorted(reasons.items(), key=lambda one: (-one[1], one[0])))
    dropped = reasons.total()
    counts = {"in": came, "kept": kept, "dropped": dropped, "undecided": came - kept - dropped}
    return {"filter": label, **counts, "reasons": by_count}


def _why(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {one_line(reason, 60)}" for reason, count in reasons.items())


def _told(fields: Mapping[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """A row as it stood, and what is said of it."""
    before = {"before": fields[SAID]} if SAID in fields else {}
    told: dict[str, Any] = _as_json({**fields, SAID: {**said, **before}})
    return told


def _as_json(value: Any) -> Any:
    """In types of JSON: dates in ISO's form, bytes in Base64, no number where there is none."""
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
    """Rows and funnel into the folder, each file whole or not at all."""
    write_lines(filtering.out / KEPT, filtering.kept())
    write_lines(filtering.out / DROPPED, filtering.dropped())
    if filtering.sifted.undecided:
        write_lines(filtering.out / UNDECIDED, filtering.undecided())
    else:
        (filtering.out / UNDECIDED).unlink(missing_ok=True)
    write_json(filtering.out / f"{FUNNEL}.json", filtering.funnel())
    write_text(filtering.out / f"{FUNNEL}.txt", filtering.lines())
