"""The page's charts as Plotly figures, each with the same numbers as a table, for screen readers.

Of the run's texts only the beginning of a reference's instruction goes into a chart, through `plain`: Plotly parses
some texts as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from refed_dspy.records import PICO, dollars
from refed_dspy.sharing.report.funnel import FunnelStep

Figure: TypeAlias = dict[str, Any]
PALETTE = ("#4269d0", "#c47f00", "#e0523a", "#2a9d83", "#3ca951", "#d6578f", "#8a4fe0", "#5b8def", "#9c6b4e", "#7d8288")
BLUE, RED, GREEN = PALETTE[0], PALETTE[2], PALETTE[4]
_MAX_LINES = 50
"""Lines of a table by minute, about."""


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


def plain(text: str) -> str:
    """`text`, a name from settings, without anything that Plotly would parse as markup."""
    return text.replace("&", "＆").replace("<", "‹").replace(">", "›")


def titled(x: str, y: str) -> Figure:
    """A layout with these titles of its axes."""
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def flow(steps: Sequence[FunnelStep]) -> Chart:
    """A funnel chart of the steps of `funnel.funnel`."""
    trace = {
        "type": "funnel",
        "y": [plain(step.name) for step in steps],
        "x": [step.count for step in steps],
        "texttemplate": "%{value:,} · %{percentInitial:.0%}",
        "marker": {"color": BLUE},
        "connector": {"fillcolor": "rgba(128,128,128,0.15)"},
    }
    rows = [
        [step.name, f"{step.count:,}", "; ".join(f"{count:,} {why}" for why, count in step.lost.items())]
        for step in steps
    ]
    text = f"{steps[0].count:,} instructions were written; {steps[-1].count:,} rows are in the data set."
    figure = {"data": [trace], "layout": {"margin": {"l": 170}, "height": 60 + 44 * len(steps)}}
    return Chart("funnel", "From instruction to row", text, figure, ("step", "rows", "lost on the way"), rows)


def costs(usage: Mapping[str, Mapping[str, Any]]) -> Chart:
    """Dollars by stage, or tokens where nothing has a price above zero. `usage`: see `usage_by_stage`."""
    unpriced = sum(use["unpriced"] for use in usage.values())
    unknown = f" The price of {unpriced:,} calls is not known; they are not in it." if unpriced else ""
    if any(use["cost"] for use in usage.values()):
        paid = {stage: use["cost"] or 0 for stage, use in usage.items()}
        traces, unit = [_horizontal_bars("dollars", paid, BLUE)], "dollars"
        text = f"{dollars(sum(paid.values()) * PICO)} in all.{unknown}"
    else:
        read = {stage: use["prompt_tokens"] for stage, use in usage.items()}
        written = {stage: use["completion_tokens"] for stage, use in usage.items()}
        traces = [_horizontal_bars("tokens read", read, BLUE), _horizontal_bars("tokens written", written, PALETTE[1])]
        text = f"{sum(read.values()):,} tokens read and {sum(written.values()):,} written."
        text += unknown or " No call cost anything."
        unit = "tokens"
    layout = {**titled(unit, ""), "barmode": "stack", "margin": {"l": 170}}
    layout["yaxis"] = {"autorange": "reversed"}
    counts = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens")
    rows = [[stage, *amounts(use, counts)] for stage, use in usage.items()]
    columns = ("stage", "calls", "tokens read", "of them cached", "tokens written", "dollars")
    return Chart("cost", "Cost by stage", text, {"data": traces, "layout": layout}, columns, rows)


def amounts(use: Mapping[str, Any], counts: Sequence[str]) -> list[str]:
    """The `counts` of a usage, then its dollars, as cells of a table."""
    cost = "unknown" if use["cost"] is None else dollars(use["cost"] * PICO)
    return [*(f"{use[name]:,}" for name in counts), cost]


def progress(points: Mapping[int, Mapping[str, float]]) -> Chart | None:
    """Rows kept and dollars, minute by minute (`tracking.run.per_minute`); None if the run took a single minute."""
    if len(points) < 2:
        return None
    minutes = list(points)
    layout = titled("minutes since it began", "rows kept")
    traces = [_line("rows kept", minutes, [points[at]["kept"] for at in minutes], BLUE)]
    if any(points[at]["dollars"] for at in minutes):
        traces.append({**_line("dollars", minutes, [points[at]["dollars"] for at in minutes], RED), "yaxis": "y2"})
        layout["yaxis2"] = {"title": {"text": "dollars"}, "overlaying": "y", "side": "right", "showgrid": False}
    shown = [*minutes[: -1 : max(1, len(minutes) // _MAX_LINES)], minutes[-1]]
    rows = [
        [*(f"{number:,.0f}" for number in (at, points[at]["kept"], points[at]["calls"])),
         dollars(points[at]["dollars"] * PICO)]
        for at in shown
    ]  # fmt: skip
    last = minutes[-1]
    text = f"{points[last]['kept']:,.0f} rows were kept within {last + 1:,} minutes of the first start."
    columns = ("minute", "rows kept", "calls", "dollars")
    return Chart("time", "Over time", text, {"data": traces, "layout": layout}, columns, rows)


def _line(name: str, x: Sequence[float], y: Sequence[float], color: str) -> Figure:
    return {"type": "scatter", "mode": "lines", "name": name, "x": list(x), "y": list(y), "line": {"color": color}}


def _horizontal_bars(name: str, amounts: Mapping[str, float], color: str) -> Figure:
    stages = [plain(stage) for stage in amounts]
    return {
        "type": "bar", "orientation": "h", "name": name, "y": stages, "x": list(amounts.values()),
        "marker": {"color": color},
    }  # fmt: skip
