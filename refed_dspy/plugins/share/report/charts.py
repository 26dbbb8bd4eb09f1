"""The page's charts, each with the same numbers as a table, for screen readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.metrics.wording import Spread, spread
from refed_dspy.plugins.share.report.drawing import GREEN, RED, Bars, Figure, Histogram, Lines
from refed_dspy.records import money
from refed_dspy.text import NO_VALUE, counted, format_number

_MAX_LINES = 50
"""Lines of a table by minute, about."""
_OPEN = "not asked, or in flight"
"""The funnel's rows that are not lost."""


@dataclass(frozen=True)
class Chart:
    """`text`: what it shows, in a sentence. `columns` and `rows`: its numbers as a table."""

    id: str
    title: str
    text: str
    figure: Figure
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: bool = False


def readable(stage: str) -> str:
    """A stage's name for people: `instruction_feedback` is "instruction feedback"."""
    return stage.replace("_", " ")


def flow(steps: Sequence[FunnelStep], title: str, text: str) -> Chart | None:
    """Steps, each with the rows that are left; None where nothing was lost in between."""
    if not any(step.lost for step in steps):
        return None
    first = steps[0].count or 1
    series = {"rows": [step.count for step in steps]}
    if any(step.open for step in steps):
        series[_OPEN] = list(accumulate(step.open for step in steps))
    names = [readable(step.name) for step in steps]
    bars = Bars(names, series, [f"{step.count:,} · {step.count / first:.0%}" for step in steps])
    rows = [
        [
            name,
            *(f"{count:,}" for count in counts),
            "; ".join(f"{count:,} {why}" for why, count in step.lost.items()),
        ]
        for name, step, *counts in zip(names, steps, *series.values(), strict=True)
    ]
    return Chart("funnel", title, text, bars, ("step", *series, "lost in between"), rows)


def costs(usage: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Dollars by stage, or tokens where nothing has a price above zero. `usage`: see `usage_by_stage`."""
    unpriced = sum(use["unpriced"] for use in usage.values())
    unknown = f" Without {counted(unpriced, 'call')} of unknown price." if unpriced else ""
    stages = [readable(stage) for stage in usage]
    if any(use["cost"] for use in usage.values()):
        paid = [use["cost"] or 0 for use in usage.values()]
        bars = Bars(stages, {"dollars": paid}, [money(cost) for cost in paid])
        open_ = sum(use["in_flight_cost"] for use in usage.values())
        aside = f", {money(open_)} of it set aside for calls without an answer so far" if open_ else ""
        text = f"{money(sum(paid))} in all{aside}.{unknown}"
    else:
        read = [use["prompt_tokens"] for use in usage.values()]
        written = [use["completion_tokens"] for use in usage.values()]
        ends = [f"{sum(tokens):,}" for tokens in zip(read, written, strict=True)]
        bars = Bars(stages, {"tokens read": read, "tokens written": written}, ends)
        text = f"{sum(read):,} tokens read and {sum(written):,} written." + (unknown or " No call cost anything.")
    counts = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens")
    rows = [[readable(stage), *amounts(use, counts)] for stage, use in usage.items()]
    columns = ("stage", "calls", "tokens read", "of them cached", "tokens written", "dollars")
    return Chart("cost", "Cost by stage", text, bars, columns, rows)


def amounts(use: Mapping[str, Any], counts: Sequence[str]) -> list[str]:
    """The `counts` of a usage, then its dollars, as cells of a table."""
    cost = money(use["cost"], unknown="unknown")
    return [*(f"{use[name]:,}" for name in counts), cost]


def progress(points: Mapping[int, Mapping[str, float]]) -> Chart | None:
    """Rows kept and dollars, minute by minute (`tracking.run.per_minute`); None if the run took a single minute."""
    if len(points) < 2:
        return None
    minutes = list(points)
    series = {"rows kept": [points[at]["kept"] for at in minutes]}
    if any(points[at]["dollars"] for at in minutes):
        series["dollars"] = [points[at]["dollars"] for at in minutes]
    shown = [*minutes[: -1 : max(1, len(minutes) // _MAX_LINES)], minutes[-1]]
    rows = [
        [*(f"{number:,.0f}" for number in (at, points[at]["kept"], points[at]["calls"])),
         money(points[at]["dollars"])]
        for at in shown
    ]  # fmt: skip
    last = minutes[-1]
    text = f"{points[last]['kept']:,.0f} rows were kept within {last + 1:,} minutes of the first start."
    columns = ("minute", "rows kept", "calls", "dollars")
    return Chart("time", "Over time", text, Lines("minutes since it began", minutes, series), columns, rows)


_PLAIN = "response_generation"
_ANSWERED = "SELECT count(*) FROM instructions WHERE CAST(id AS TEXT) IN (SELECT item FROM answers WHERE stage = ?)"
# Failures of the plain response (`response_generation`), or of its improvement. A judge's failure loses no row here.
_FAILED = """
SELECT kind, count(*) FROM failures
WHERE (stage = 'response_generation') = ? AND stage NOT LIKE '%judge'
  AND item IN (SELECT CAST(id AS TEXT) FROM instructions)
GROUP BY kind ORDER BY 2 DESC
"""
# A filter of responses decides only on rows that have one, so a filter that decided on others looks at instructions.
_EARLY = """
SELECT DISTINCT filter FROM decisions
WHERE CAST(instruction AS TEXT) NOT IN (SELECT item FROM answers WHERE stage = ?)
"""


@dataclass(frozen=True)
class FunnelStep:
    """`count` rows passed; `lost`: reason → how many were lost to it; `open`: how many are neither, since they
    were not asked about, or are in flight."""

    name: str
    count: int
    lost: Mapping[str, int] = field(default_factory=dict)
    open: int = 0


def funnel(ledger: Ledger, status: Mapping[str, Any]) -> list[FunnelStep]:
    """The run's steps in order, each with its losses from the step before. `status`: see `status_of`.

    A step's count, its losses and what is open add up to the count of the step before.
    """
    made = status["instructions"]
    lost = {"duplicates": made["duplicates"], "surplus": made["surplus"]}
    written = FunnelStep("instructions written", made["new"] + sum(lost.values()))
    steps = [written, FunnelStep("new ones", made["new"], _nonzero(lost))]
    for step in [*_later(ledger, status), FunnelStep("in the data set", status["kept"])]:
        left = steps[-1].count - step.count - sum(step.lost.values())
        steps.append(FunnelStep(step.name, step.count, _nonzero(step.lost), left))
    return steps


def _later(ledger: Ledger, status: Mapping[str, Any]) -> Iterator[FunnelStep]:
    final = str(ledger.meta("final_stage") or "response_improvement")
    early = set()
    if status["filters"]:  # filters of instructions dropped some before a response was asked for
        early = {name for (name,) in ledger.db.execute(_EARLY, (final,))}
    yield from (_kept_by(counts) for counts in status["filters"] if counts["filter"] in early)
    for name, stage in (("answered", _PLAIN), ("improved", final)):
        if name == "improved" and final == _PLAIN:
            continue
        (count,) = ledger.db.execute(_ANSWERED, (stage,)).fetchone()
        failed = {f"failed: {kind}": number for kind, number in ledger.db.execute(_FAILED, (stage == _PLAIN,))}
        yield FunnelStep(name, count, failed)
    yield from (_kept_by(counts) for counts in status["filters"] if counts["filter"] not in early)


def _kept_by(counts: Mapping[str, Any]) -> FunnelStep:
    """A filter's step, from its entry in the status."""
    return FunnelStep(f"kept by {counts['filter']}", counts["kept"], counts["reasons"])


def _nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count > 0}


_BINS = 40
Scores: TypeAlias = tuple[Sequence[float], Sequence[float]]


def lengths(counts: Mapping[str, Sequence[int]]) -> Chart | None:
    """Words in the texts of kept rows (`AllRows.words`); None where no row was kept."""
    words = {name: np.asarray(numbers) for name, numbers in counts.items()}
    if not words:
        return None
    # The last bin holds everything longer: otherwise one huge text would squeeze all others into the first bin.
    top = max(1.0, float(np.percentile(np.concatenate(list(words.values())), 99.5)))
    edges = np.linspace(0, top, _BINS + 1)
    heights = {
        name: (color, np.histogram(np.minimum(counts, top), edges)[0].tolist())
        for color, (name, counts) in enumerate(words.items())
    }
    figure = Histogram("words", _centres(edges).tolist(), top / _BINS, heights, stacked=False)
    table = [[name, *_cells(spread(counts))] for name, counts in words.items()]
    medians = ", ".join(f"{np.median(counts):.0f} in the {name}" for name, counts in words.items())
    columns = ("text", "rows", "mean", "median", "5%", "95%", "longest")
    return Chart("lengths", "Lengths", f"Median words: {medians}.", figure, columns, table)


def scores(filters: Sequence[Mapping[str, Any]], given: Mapping[str, Scores]) -> list[Chart]:
    """A chart for each filter whose scores differ between rows: kept and dropped rows side by side.

    `filters`: see `decisions_by_filter`; `given`: see `AllRows.scores`.
    """
    found = [(counts, [np.asarray(part) for part in given.get(counts["filter"], ((), ()))]) for counts in filters]
    varied = [(counts, parts) for counts, parts in found if len(np.unique(np.concatenate(parts))) > 1]
    return [_scores(place, counts, *parts) for place, (counts, parts) in enumerate(varied)]


def _scores(place: int, counts: Mapping[str, Any], dropped: Any, kept: Any) -> Chart:
    values = np.unique(np.concatenate([kept, dropped]))
    few = len(values) <= _BINS  # such as grades: a bar each
    edges = _between(values) if few else np.linspace(values[0], values[-1], _BINS + 1)
    groups = (("kept", GREEN, kept), ("dropped", RED, dropped))
    places = (values if few else _centres(edges)).tolist()
    heights = {
        group: (color, np.histogram(scores, edges)[0].tolist()) for group, color, scores in groups if len(scores)
    }
    name, rows = counts["filter"], counts["kept"] + counts["dropped"]
    without = rows - len(kept) - len(dropped)
    text = f"{counted(counts['kept'], 'row')} kept and {counts['dropped']:,} dropped by {name}, by the score it gave."
    if without:
        text += f" {without:,} of them have none." if len(kept) else " It gives kept rows no score."
    table = [[group, *_cells(spread(scores))] for group, _, scores in groups]
    columns = ("rows that were", "rows", "mean", "median", "5%", "95%", "highest")
    figure = Histogram("score", places, float(np.diff(edges).min()), heights, stacked=True)
    return Chart(f"scores-{place}", f"Scores of {name}", text, figure, columns, table)


def _centres(edges: Any) -> Any:
    return (edges[:-1] + edges[1:]) / 2


def _between(values: Any) -> Any:
    """Edges of bins that each hold a single one of two or more sorted values."""
    middle = _centres(values)
    return np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])


def _cells(of: Spread | None) -> list[str]:
    if of is None:
        return ["0", *[NO_VALUE] * 5]
    numbers = (of.mean, of.median, of.p5, of.p95, of.maximum)
    return [
        f"{of.count:,}",
        *(format_number(value, 0 if abs(value) >= 100 or value == int(value) else 2) for value in numbers),
    ]
