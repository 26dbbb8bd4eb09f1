"""Charts as places in percent, which the page's template writes as SVG and HTML: no script draws them.

Names and titles are texts; the template escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeAlias, TypeVar

from refed_dspy.measures.intervals import Interval
from refed_dspy.text import counted

T = TypeVar("T")
PALETTE = ("#4269d0", "#c47f00", "#e0523a", "#2a9d83", "#3ca951", "#d6578f", "#8a4fe0", "#5b8def", "#9c6b4e", "#7d8288")
BLUE, AMBER, RED, GREEN = 0, 1, 2, 4
"""Places in PALETTE."""

Ticks: TypeAlias = list[tuple[float, str]]
"""(percent of the axis, label)."""


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`. `whole`: no labels between whole numbers."""

    title: str
    low: float
    high: float
    whole: bool = False

    def at(self, value: float) -> float:
        """Where a value is, in percent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low or 1), 2)

    @property
    def ticks(self) -> Ticks:
        """About five round numbers."""
        span = self.high - self.low or 1
        step = 10.0 ** math.floor(math.log10(span / 5))
        step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
        step = max(1.0, step) if self.whole else step
        numbers = range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)
        return [(self.at(number * step), f"{number * step:,.10g}") for number in numbers]


@dataclass(frozen=True)
class Part:
    """A stretch of a line; `mean`: where the dot of an interval is."""

    left: float
    width: float
    color: str
    title: str
    mean: float | None = None


@dataclass(frozen=True)
class _Labelled(Generic[T]):
    """A line for each of `labels`, with the text of `ends` after it. `series`: name → what it has on each line."""

    kind: ClassVar = "bars"
    labels: Sequence[str]
    series: Mapping[str, Sequence[T]]
    ends: Sequence[str]

    @property
    def legend(self) -> Sequence[tuple[str, str]]:
        return [(name, PALETTE[at]) for at, name in enumerate(self.series)] if len(self.series) > 1 else ()


@dataclass(frozen=True)
class Bars(_Labelled[float]):
    """Horizontal bars of stacked parts."""

    middle_at: ClassVar = None
    ticks: ClassVar[Ticks] = []

    @property
    def lines(self) -> list[tuple[str, list[Part], str]]:
        """Label, parts and end of each bar."""
        totals = [sum(lengths) for lengths in zip(*self.series.values(), strict=True)]
        axis, lines = Axis("", 0, max(totals, default=0)), []
        for at, (label, end) in enumerate(zip(self.labels, self.ends, strict=True)):
            parts, left = [], 0.0
            for number, (name, lengths) in enumerate(self.series.items()):
                width = axis.at(lengths[at]) if axis.high else 0.0
                parts.append(Part(round(left, 2), width, PALETTE[number], f"{name}: {lengths[at]:,.10g}"))
                left += width
            lines.append((label, parts, end))
        return lines


@dataclass(frozen=True)
class Histogram:
    """Columns around places on the x axis. `series`: name → (colour, heights). `stacked`: else one behind the other."""

    kind: ClassVar = "plot"
    title: str
    places: Sequence[float]
    width: float
    series: Mapping[str, tuple[int, Sequence[float]]]
    stacked: bool
    right: ClassVar = None
    marks: ClassVar[Sequence[str]] = ()

    @property
    def legend(self) -> list[tuple[str, str]]:
        return [(name, PALETTE[color]) for name, (color, _) in self.series.items()]

    @property
    def x(self) -> Axis:
        return Axis(self.title, self.places[0] - self.width / 2, self.places[-1] + self.width / 2)

    @property
    def y(self) -> Axis:
        columns = list(zip(*(heights for _, heights in self.series.values()), strict=True))
        highest = max(sum(heights) if self.stacked else max(heights) for heights in columns)
        return Axis("rows", 0, 1.05 * highest, whole=True)

    @property
    def columns(self) -> list[tuple[float, float, float, float, str, str]]:
        """x, y, width, height, colour and title of each column that is not empty."""
        below, x, y = [0.0] * len(self.places), self.x, self.y
        width, made = x.at(x.low + self.width), []
        for name, (color, heights) in self.series.items():
            for at, (place, height) in enumerate(zip(self.places, heights, strict=True)):
                if not height:
                    continue
                top = y.at(below[at] + height)
                title = f"{name}, about {place:,.4g} {self.title}: {counted(height, 'row')}"
                left = x.at(place - self.width / 2)
                made.append((left, round(100 - top, 2), width, y.at(height), PALETTE[color], title))
                below[at] += height if self.stacked else 0
        return made


@dataclass(frozen=True)
class Lines:
    """Lines over the same places. `series`: name → heights; the second one has its axis at the right."""

    kind: ClassVar = "plot"
    title: str
    places: Sequence[float]
    series: Mapping[str, Sequence[float]]
    columns: ClassVar[Sequence[tuple[float, float, float, float, str, str]]] = ()

    @property
    def legend(self) -> list[tuple[str, str]]:
        return [(name, PALETTE[color]) for name, color in zip(self.series, (BLUE, RED), strict=False)]

    @property
    def x(self) -> Axis:
        return Axis(self.title, self.places[0], self.places[-1], whole=True)

    @property
    def axes(self) -> list[Axis]:
        return [Axis(name, 0, 1.05 * max(heights) or 1) for name, heights in self.series.items()]

    @property
    def y(self) -> Axis:
        return self.axes[0]

    @property
    def right(self) -> Axis | None:
        return self.axes[1] if len(self.series) > 1 else None

    @property
    def marks(self) -> list[tuple[str, str]]:
        """Each line's path and colour."""
        marks, x = [], self.x
        for axis, heights, color in zip(self.axes, self.series.values(), (BLUE, RED), strict=False):
            points = (f"{x.at(at)} {100 - axis.at(y):.2f}" for at, y in zip(self.places, heights, strict=True))
            marks.append((f"M{'L'.join(points)}", PALETTE[color]))
        return marks


@dataclass(frozen=True)
class Intervals(_Labelled[Interval | None]):
    """Means with their intervals; `middle` is marked. A series' line may lack one."""

    low: float
    high: float
    middle: float | None = None

    @property
    def middle_at(self) -> float | None:
        return None if self.middle is None else Axis("", self.low, self.high).at(self.middle)

    @property
    def ticks(self) -> Ticks:
        axis = Axis("", self.low, self.high)
        marked = [self.low, *([] if self.middle is None else [self.middle]), self.high]
        return [(axis.at(value), f"{value:,.3g}") for value in marked]

    @property
    def lines(self) -> list[tuple[str, list[Part], str]]:
        axis, lines = Axis("", self.low, self.high), []
        for at, (label, end) in enumerate(zip(self.labels, self.ends, strict=True)):
            parts = []
            for number, (name, intervals) in enumerate(self.series.items()):
                if (interval := intervals[at]) is None:
                    continue
                mean, low, high = interval.mean, max(self.low, interval.low), min(self.high, interval.high)
                low, high = (low, high) if interval.bounded else (mean, mean)
                title = f"{name}: {mean:.4g} ({low:.4g} to {high:.4g})"
                left = axis.at(low)
                parts.append(Part(left, round(axis.at(high) - left, 2), PALETTE[number], title, axis.at(mean)))
            lines.append((label, parts, end))
        return lines


@dataclass(frozen=True)
class Dots:
    """Points that are rows, in their order. `colourings`: label → (each group's name and colour, each row's colour as a
    place in PALETTE)."""

    kind: ClassVar = "dots"
    places: Sequence[tuple[float, float]]
    colourings: Mapping[str, tuple[Sequence[tuple[str, str]], Sequence[int]]]
    small: bool

    @property
    def drawn(self) -> list[tuple[tuple[float, float], str]]:
        """Each point with its colour in each colouring, as "a3 b0"."""
        colors = zip(*(colors for _, colors in self.colourings.values()), strict=True)
        classes = (" ".join(f"{'abc'[n]}{color}" for n, color in enumerate(row)) for row in colors)
        return list(zip(self.places, classes, strict=True))


Figure: TypeAlias = Bars | Histogram | Lines | Intervals | Dots
