"""The page's charts, each with the same numbers as a table, for screen readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from refed_dspy.plugins.share.report.drawing import Bars, Figure, Lines
from refed_dspy.plugins.share.report.funnel import FunnelStep
from refed_dspy.records import PICO, dollars
from refed_dspy.text import counted

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
        bars = Bars(stages, {"dollars": paid}, [dollars(cost * PICO) for cost in paid])
        open_ = sum(use["in_flight_cost"] for use in usage.values())
        aside = f", {dollars(open_ * PICO)} of it set aside for calls without an answer so far" if open_ else ""
        text = f"{dollars(sum(paid) * PICO)} in all{aside}.{unknown}"
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
    cost = "unknown" if use["cost"] is None else dollars(use["cost"] * PICO)
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
         dollars(points[at]["dollars"] * PICO)]
        for at in shown
    ]  # fmt: skip
    last = minutes[-1]
    text = f"{points[last]['kept']:,.0f} rows were kept within {last + 1:,} minutes of the first start."
    columns = ("minute", "rows kept", "calls", "dollars")
    return Chart("time", "Over time", text, Lines("minutes since it began", minutes, series), columns, rows)
