"""What pictures of figures have in common: their style and colours, markers and legends, and how they are saved as PNG.

Names come from configs and models: they are cut, and never read as markup. Colours are those of Okabe and Ito, which
colour-blind readers can distinguish; each line also has its own marker. What has no interval (one cluster) has an open
marker. Matplotlib's defaults are used, not the user's settings. While drawing, the settings are replaced for the whole
process, so draw in one thread at a time.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refed_dspy.errors import one_line
from refed_dspy.files import as_export_error, whole_file
from refed_dspy.measures.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^DvPX*"
_LONGEST_NAME = 32
_STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 100,
    "text.parse_math": False,  # a dollar is a dollar
}
_APART = 0.06
"""Powers of two between the intervals of two filters at one size."""


def save(figure: Figure, path: Path) -> None:
    """Write the picture to `path` as PNG, whole or not at all; an existing file is replaced.

    Raises ExportError where it cannot be written.
    """
    with as_export_error(path), whole_file(path) as file, style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font has no letter for
        figure.savefig(file, format="png")


def style() -> AbstractContextManager[None]:
    """Matplotlib's settings while a picture is drawn."""
    from matplotlib import style as styles

    return styles.context(["default", _STYLE])


def new_figure(height: float, caption: str) -> tuple[Figure, Any]:
    """A figure, 8 inches wide, with the caption below, in as many lines as it needs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    lines = "\n".join(textwrap.wrap(one_line(caption, 1000), 115))
    figure.supxlabel(lines, fontsize=8, color="0.3", x=0.015, ha="left")
    return figure, figure.add_subplot()


def look(number: int, interval: Interval | None = None) -> dict[str, Any]:
    """Colour and marker; the marker is open where `interval` has no ends."""
    color = _COLOURS[number % len(_COLOURS)]
    face = color if interval is None or interval.bounded else "white"
    marker = _MARKERS[number % len(_MARKERS)]
    return {"color": color, "marker": marker, "markersize": 7, "markerfacecolor": face, "zorder": 3}


def legend(figure: Figure, names: Sequence[str], **line: Any) -> None:
    """A legend above the axes. `line`: how its lines look."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look(number), **line) for number in range(len(names))]
    columns = 3 if len(names) <= 3 else 2
    figure.legend(handles, names, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def shown_name(name: str) -> str:
    """A name as pictures show it: one line, cut."""
    return one_line(name, _LONGEST_NAME)


@dataclass(frozen=True)
class Bar:
    """A program's win rates in percent, 0 to 100: as judged, and length-controlled (or otherwise, as the picture says)
    if there is one."""

    name: str
    win_rate: Interval
    length_controlled: Interval | None = None


@dataclass(frozen=True)
class Point:
    """The quality of what a filter kept: `rows` rows, at least one."""

    rows: int
    quality: Interval


def win_rate_picture(
    bars: Sequence[Bar], *, caption: str = "", level: int = 95, controlled: str = "length-controlled"
) -> Figure:
    """A row for each program, the first on top: a dot with its interval for the win rate, another below it for the
    `controlled` one, and a line at 50%. `level`: of the intervals, in percent."""
    with style():
        figure, axes = new_figure(2.0 + 0.5 * len(bars), caption)
        axes.axvline(50, color="0.45", linewidth=1, linestyle="--", zorder=1)
        for row, bar in enumerate(bars):
            apart = 0.14 if bar.length_controlled else 0
            for number, rate, y in ((0, bar.win_rate, row - apart), (1, bar.length_controlled, row + apart)):
                if rate is not None:
                    axes.hlines(y, max(0, rate.low), min(100, rate.high), color=look(number)["color"])
                    axes.plot(rate.mean, y, linestyle="none", clip_on=False, **look(number, rate))
        low, high = axes.get_xlim()
        axes.set_xlim(max(-1, low), min(101, high))
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_yticks(range(len(bars)), [shown_name(bar.name) for bar in bars])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"wins in %, with {level}% intervals")
        both = any(bar.length_controlled for bar in bars)
        legend(figure, ["win rate", controlled] if both else ["win rate"], linestyle="none")
    return figure


def filter_picture(curves: Mapping[str, Sequence[Point]], *, caption: str, quality: str = "quality") -> Figure:
    """A line for each filter: quality, with its interval, by rows kept, on a base-2 logarithmic scale.

    Filters are drawn slightly apart so that no interval hides another. One without a point is in the legend, which says
    so. `quality` names the vertical axis; `caption` says what the measure is a proxy of.
    """
    with style():
        figure, axes = new_figure(4.8 + 0.1 * len(curves), caption)
        axes.set_xscale("log", base=2)
        for number, curve in enumerate(curves.values()):
            shift = 2.0 ** (_APART * (number - (len(curves) - 1) / 2))
            points = [(point.rows * shift, point.quality) for point in sorted(curve, key=lambda point: point.rows)]
            color = look(number)["color"]
            axes.plot([x for x, _ in points], [interval.mean for _, interval in points], color=color)
            for x, interval in points:
                if interval.bounded:
                    axes.vlines(x, interval.low, interval.high, color=color, alpha=0.75)
                axes.plot(x, interval.mean, **look(number, interval))
        sizes = sorted({point.rows for curve in curves.values() for point in curve})
        # The number of a size that nearly equals the next one would lie under that one's.
        ticks = [size for size, larger in zip(sizes, [*sizes[1:], math.inf], strict=True) if larger > 1.2 * size]
        axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
        axes.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
        axes.minorticks_off()
        axes.set_xlabel("rows kept")
        axes.set_ylabel(shown_name(quality))
        axes.grid(axis="y", color="0.9")
        legend(figure, [shown_name(name) + ("" if curve else " (no point)") for name, curve in curves.items()])
    return figure
