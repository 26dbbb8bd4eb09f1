"""Two pictures of a comparison: win rates of programs, and quality by rows kept. PNG and SVG, the same bytes each time.

Names come from configs and models. They are shown as they are, whatever they contain, and long ones are cut. A
character that cannot be printed or is not in the font is shown as its escape: nothing is hidden, and an empty box would
not say which letter it was. Colours are those of Okabe and Ito, which colour-blind readers can distinguish; each line
also has its own marker.

Figures are drawn with Matplotlib's defaults, not with the user's settings. While drawing, the settings are replaced for
the whole process, so draw in one thread at a time.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refed_dspy.errors import ExportError, one_line
from refed_dspy.files import whole_file
from refed_dspy.metrics.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^DvPX*"
_FONT = "DejaVu Sans"  # comes with Matplotlib
_LONGEST = 32  # characters of a name
_INCHES, _DPI = 8.0, 100
_STYLE: dict[str, Any] = {
    "font.family": _FONT,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "refed",  # else the ids in an SVG are drawn at random
}


@dataclass(frozen=True)
class Bar:
    """A program's win rates in percent, 0 to 100: as judged, and length-controlled if there is one."""

    name: str
    win_rate: Interval
    length_controlled: Interval | None = None


@dataclass(frozen=True)
class Point:
    """The quality of what a filter kept: `rows` rows, at least one."""

    rows: int
    quality: Interval


def win_rate_picture(bars: Sequence[Bar], *, caption: str = "") -> Figure:
    """A row for each program, the first on top: a dot with its interval for the win rate, another below it for the
    length-controlled one, and a line at 50%.

    An open dot has no interval (one cluster). Raises ValueError without a bar and for a rate outside 0 to 100.
    """
    if not bars:
        raise ValueError("there is no program to draw; give one or more")
    beside = [bar.length_controlled is not None for bar in bars]
    kinds: list[tuple[str, list[Interval | None], float]] = [("win rate", [bar.win_rate for bar in bars], -0.14)]
    if any(beside):
        kinds.append(("length-controlled", [bar.length_controlled for bar in bars], 0.14))
    with _default_style():
        figure, axes = _figure(1.5 + 0.5 * len(bars), caption)
        axes.axvline(50, color="0.45", linewidth=1, linestyle="--", zorder=1)
        handles = [
            _dots(axes, number, [(row + shift * beside[row], rate) for row, rate in enumerate(rates) if rate])
            for number, (_, rates, shift) in enumerate(kinds)
        ]
        axes.set_xlim(*_percent_limits([rate for _, rates, _ in kinds for rate in rates if rate]))
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_yticks(range(len(bars)), [_shown(bar.name) for bar in bars], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("wins in %, with 95% intervals")
        _legend(figure, handles, [kind for kind, _, _ in kinds])
    return figure


def filter_picture(curves: Mapping[str, Sequence[Point]], *, caption: str, quality: str = "quality") -> Figure:
    """A line for each filter: quality, with its interval, by rows kept, on a base-2 logarithmic scale.

    Intervals at the same size are drawn slightly apart so that none hides another; their data stay the same. An open
    marker has no interval (one cluster). A filter without a point is in the legend, which says so. `quality` names the
    vertical axis; `caption` says what the measure is a proxy of. Raises ValueError if there is no point at all, for a
    size below 1 and for a quality that is not finite.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("there is no point to draw; give one or more")
    if any(point.rows < 1 or not math.isfinite(point.quality.mean) for point in points):
        raise ValueError("each point needs a size of at least one row and a quality that is a finite number")
    with _default_style():
        figure, axes = _figure(4.6, caption)
        handles = []
        for number, curve in enumerate(curves.values()):
            apart = 7.0 * (number - (len(curves) - 1) / 2) * min(1, 6 / len(curves))
            handles.append(_line(figure, axes, number, sorted(curve, key=lambda point: point.rows), apart))
        _set_x_ticks(axes, [point.rows for point in points])
        _set_y_limits(axes, [point.quality for point in points])
        axes.set_xlabel("rows kept")
        axes.set_ylabel(_shown(quality), parse_math=False)
        axes.grid(axis="y", color="0.9")
        _legend(figure, handles, [_shown(name) + ("" if curve else " (no point)") for name, curve in curves.items()])
    return figure


def rendered(figure: Figure, format: str = "png") -> bytes:  # noqa: A002 - Matplotlib's word
    """The picture's file: "png" (800 pixels wide) or "svg". The same figure gives the same bytes."""
    if format not in FORMATS:
        raise ExportError(f"format {one_line(format, 40)}: unknown; use {' or '.join(FORMATS)}")
    file = BytesIO()
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}  # no date and no version
    with _default_style():
        figure.savefig(file, format=format, dpi=_DPI, metadata=metadata[format])
    return file.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write the picture to `path`, whole or not at all, in the format of its suffix; an existing file is replaced.

    Raises ExportError for another suffix, and where it cannot be written.
    """
    path = Path(path)
    content = rendered(figure, path.suffix.lower().removeprefix("."))
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        why = one_line(error.strerror or error)
        raise ExportError(f"{one_line(path, 200)}: cannot be written: {why}; name another file") from None


@contextmanager
def _default_style() -> Iterator[None]:
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def _figure(height: float, caption: str) -> tuple[Figure, Any]:
    """A figure with the caption below, in as many lines as it needs."""
    from matplotlib.figure import Figure

    lines = _wrapped(one_line(caption, 1000), 8) if caption.strip() else []
    figure = Figure(figsize=(_INCHES, height + 0.16 * len(lines)), dpi=_DPI)
    # The layout ignores a tick label at the right end of an axis.
    figure.set_layout_engine("constrained", w_pad=0.12)
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=8, color="0.3", x=0.015, ha="left", parse_math=False)
    return figure, figure.add_subplot()


def _dots(axes: Any, number: int, rates: Sequence[tuple[float, Interval]]) -> Any:
    """Draw each (height, rate)."""
    for _, rate in rates:
        if not 0 <= rate.mean <= 100:
            raise ValueError(f"a win rate of {rate.mean} is none; give percentages from 0 to 100")
    look = _look(number)
    axes.hlines(
        [y for y, _ in rates],
        [max(0, rate.low) for _, rate in rates],
        [min(100, rate.high) for _, rate in rates],
        color=look["color"],
        linewidth=1.6,
    )
    (line,) = axes.plot(
        [rate.mean for _, rate in rates], [y for y, _ in rates], linestyle="none", clip_on=False, **look
    )
    _open_markers(axes, number, [(rate.mean, y) for y, rate in rates if not _bounded(rate)], None)
    return line


def _line(figure: Figure, axes: Any, number: int, curve: Sequence[Point], apart: float) -> Any:
    """Draw the curve `apart` typographic points to the right of its data."""
    from matplotlib.transforms import ScaledTranslation

    shifted = axes.transData + ScaledTranslation(apart / 72, 0, figure.dpi_scale_trans)
    look = _look(number)
    bounded = [point for point in curve if _bounded(point.quality)]
    axes.vlines(
        [point.rows for point in bounded],
        [point.quality.low for point in bounded],
        [point.quality.high for point in bounded],
        color=look["color"],
        linewidth=1.2,
        alpha=0.75,
        transform=shifted,
    )
    places = [(point.rows, point.quality.mean) for point in curve]
    (line,) = axes.plot([x for x, _ in places], [y for _, y in places], linewidth=1.4, transform=shifted, **look)
    unbounded = [(point.rows, point.quality.mean) for point in curve if not _bounded(point.quality)]
    _open_markers(axes, number, unbounded, shifted)
    return line


def _open_markers(axes: Any, number: int, places: Sequence[tuple[float, float]], transform: Any) -> None:
    """Draw open markers, of what has no interval."""
    look = _look(number) | {"markerfacecolor": "white", "linestyle": "none", "zorder": 4}
    if places:
        more = {} if transform is None else {"transform": transform}
        axes.plot([x for x, _ in places], [y for _, y in places], **look, **more)


def _look(number: int) -> dict[str, Any]:
    colour = _COLOURS[number % len(_COLOURS)]
    return {"color": colour, "marker": _MARKERS[number % len(_MARKERS)], "markersize": 7, "zorder": 3}


def _bounded(interval: Interval) -> bool:
    return math.isfinite(interval.low) and math.isfinite(interval.high)


def _percent_limits(rates: Sequence[Interval]) -> tuple[float, float]:
    """The ends of the axis: it includes all intervals and 50."""
    low = min(50.0, *(max(0.0, rate.low) if _bounded(rate) else 0.0 for rate in rates))
    high = max(50.0, *(min(100.0, rate.high) if _bounded(rate) else 100.0 for rate in rates))
    room = max(2.0, 0.06 * (high - low))
    return max(-1.0, low - room), min(101.0, high + room)


def _set_x_ticks(axes: Any, sizes: Sequence[int]) -> None:
    """Ticks at 1K, 2K, 4K and so on; if any size is below 125 or all are below 1,000, at 1, 2, 4 and so on."""
    unit = 1000.0 if min(sizes) >= 125 and max(sizes) >= 1000 else 1.0
    least, most = math.log2(min(sizes) / unit), math.log2(max(sizes) / unit)
    ticks = range(math.floor(least + 1e-9), math.ceil(most - 1e-9) + 1)
    ticks = range(ticks.start, ticks.stop, 1 + len(ticks) // 10)
    axes.set_xscale("log", base=2)
    axes.set_xlim(unit * 2 ** min(least - 0.5, ticks[0] - 0.15), unit * 2 ** max(most + 0.5, ticks[-1] + 0.15))
    axes.set_xticks([unit * 2.0**tick for tick in ticks], [_tick_label(unit * 2.0**tick) for tick in ticks])
    axes.minorticks_off()


def _tick_label(size: float) -> str:
    return f"{size / 1000:,.0f}K" if size >= 1000 and size % 1000 == 0 else f"{size:,.0f}"


def _set_y_limits(axes: Any, qualities: Sequence[Interval]) -> None:
    ends = [end for quality in qualities for end in (quality.low, quality.mean, quality.high) if math.isfinite(end)]
    room = 0.06 * (max(ends) - min(ends)) or 0.05 * abs(ends[0]) or 1.0
    axes.set_ylim(min(ends) - room, max(ends) + room)


def _legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend above the axes, in as many columns as fit; the figure grows by the lines beyond the first."""
    widest = max(_width(name, 9) for name in names) + 45
    columns = max(1, min(len(names), int((72 * _INCHES - 20) / widest)))
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(len(names) / columns) - 1))
    # Names are set afterwards: Matplotlib leaves out a label that starts with an underscore.
    labels = [str(number) for number in range(len(names))]
    legend = figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9, handlelength=2.2
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _shown(name: str) -> str:
    """The name, at most _LONGEST characters; what the font has no letter for is shown as its escape."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = get_font(findfont(FontProperties(family=_FONT))).get_charmap()
    printable = (c if c.isprintable() and ord(c) in letters else c.encode("unicode_escape").decode() for c in name)
    text = "".join(printable)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _width(text: str, size: float) -> float:
    """The width of the text in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(family=_FONT, size=size), False)[0])


def _wrapped(text: str, size: float) -> list[str]:
    """The text as lines that fit into the figure."""
    letters = int(0.93 * 72 * _INCHES / (_width(text, size) / len(text)))
    return textwrap.wrap(text, letters)
