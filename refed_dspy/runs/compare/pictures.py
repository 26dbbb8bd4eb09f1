"""Two pictures of a comparison: win rates of programs, and quality by rows kept. PNG and SVG, the same bytes each time.

Names come from configs and models: they are shown as they are, whatever is in them, and cut where they are long. What
cannot be printed or is not in the font is shown as its escape: nothing is hidden, and an empty box tells nobody which
letter it was. Colours are those of Okabe and Ito, told apart by colour-blind readers; each line has its own marker too.

Figures are drawn with Matplotlib's defaults, not with the user's own settings: for as long as drawing lasts those are
exchanged for the whole process, so draw in one thread at a time.
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
    """A program's win rates in percent, 0 to 100: as judged, and length-controlled where there is one."""

    name: str
    win_rate: Interval
    length_controlled: Interval | None = None


@dataclass(frozen=True)
class Point:
    """The quality of what a filter kept: `rows` rows, at least one."""

    rows: int
    quality: Interval


def win_rate_picture(bars: Sequence[Bar], *, caption: str = "") -> Figure:
    """A row a program, the first on top: a dot and its interval for the win rate, another below it for the
    length-controlled one, and a line at 50%.

    An open dot has no interval (one cluster). Raises ValueError without a bar and for a rate outside 0 to 100.
    """
    if not bars:
        raise ValueError("there is no program to draw; give one or more")
    beside = [bar.length_controlled is not None for bar in bars]
    kinds: list[tuple[str, list[Interval | None], float]] = [("win rate", [bar.win_rate for bar in bars], -0.14)]
    if any(beside):
        kinds.append(("length-controlled", [bar.length_controlled for bar in bars], 0.14))
    with _drawing():
        figure, axes = _figure(1.5 + 0.5 * len(bars), caption)
        axes.axvline(50, color="0.45", linewidth=1, linestyle="--", zorder=1)
        handles = [
            _dots(axes, number, [(row + shift * beside[row], one) for row, one in enumerate(rates) if one])
            for number, (_, rates, shift) in enumerate(kinds)
        ]
        axes.set_xlim(*_percents([one for _, rates, _ in kinds for one in rates if one]))
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_yticks(range(len(bars)), [_shown(bar.name) for bar in bars], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("wins in %, with 95% intervals")
        _legend(figure, handles, [kind for kind, _, _ in kinds])
    return figure


def filter_picture(curves: Mapping[str, Sequence[Point]], *, caption: str, quality: str = "quality") -> Figure:
    """A line a filter: quality, with its interval, by rows kept, on a scale that doubles.

    Where intervals of one size would hide each other they stand a little apart; their data do not. An open marker has
    no interval (one cluster). A filter without a point stands in the legend, which says so. `quality` names the upright
    axis; `caption` belongs to the picture: what the measure is a proxy of. Raises ValueError where there is no point at
    all, for a size below 1 and for a quality that is not finite.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("there is no point to draw; give one or more")
    if any(point.rows < 1 or not math.isfinite(point.quality.mean) for point in points):
        raise ValueError("each point needs a size of at least one row and a quality that is a finite number")
    with _drawing():
        figure, axes = _figure(4.6, caption)
        handles = []
        for number, curve in enumerate(curves.values()):
            apart = 7.0 * (number - (len(curves) - 1) / 2) * min(1, 6 / len(curves))
            handles.append(_line(figure, axes, number, sorted(curve, key=lambda point: point.rows), apart))
        _doubling(axes, [point.rows for point in points])
        _upright(axes, [point.quality for point in points])
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
    told = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}  # no date and no version
    with _drawing():
        figure.savefig(file, format=format, dpi=_DPI, metadata=told[format])
    return file.getvalue()


def save(figure: Figure, path: str | Path) -> None:
    """Write the picture to `path`, whole or not at all, in the format that its suffix names; a file there is replaced.

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
def _drawing() -> Iterator[None]:
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def _figure(height: float, caption: str) -> tuple[Figure, Any]:
    """With the caption below, in as many lines as it takes."""
    from matplotlib.figure import Figure

    lines = _wrapped(one_line(caption, 1000), 8) if caption.strip() else []
    figure = Figure(figsize=(_INCHES, height + 0.16 * len(lines)), dpi=_DPI)
    # The layout does not see a number that stands at the right end of an axis.
    figure.set_layout_engine("constrained", w_pad=0.12)
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=8, color="0.3", x=0.015, ha="left", parse_math=False)
    return figure, figure.add_subplot()


def _dots(axes: Any, number: int, rates: Sequence[tuple[float, Interval]]) -> Any:
    """Each rate at its height, as (height, rate)."""
    for _, one in rates:
        if not 0 <= one.mean <= 100:
            raise ValueError(f"a win rate of {one.mean} is none; give percentages from 0 to 100")
    look = _look(number)
    axes.hlines(
        [y for y, _ in rates],
        [max(0, one.low) for _, one in rates],
        [min(100, one.high) for _, one in rates],
        color=look["color"],
        linewidth=1.6,
    )
    (line,) = axes.plot([one.mean for _, one in rates], [y for y, _ in rates], linestyle="none", clip_on=False, **look)
    _open(axes, number, [(one.mean, y) for y, one in rates if not _bounded(one)], None)
    return line


def _line(figure: Figure, axes: Any, number: int, curve: Sequence[Point], apart: float) -> Any:
    """`apart` points to the right of where the data are."""
    from matplotlib.transforms import ScaledTranslation

    place = axes.transData + ScaledTranslation(apart / 72, 0, figure.dpi_scale_trans)
    look = _look(number)
    bounded = [point for point in curve if _bounded(point.quality)]
    axes.vlines(
        [point.rows for point in bounded],
        [point.quality.low for point in bounded],
        [point.quality.high for point in bounded],
        color=look["color"],
        linewidth=1.2,
        alpha=0.75,
        transform=place,
    )
    places = [(point.rows, point.quality.mean) for point in curve]
    (line,) = axes.plot([x for x, _ in places], [y for _, y in places], linewidth=1.4, transform=place, **look)
    _open(axes, number, [place for place, one in zip(places, curve, strict=True) if not _bounded(one.quality)], place)
    return line


def _open(axes: Any, number: int, places: Sequence[tuple[float, float]], transform: Any) -> None:
    look = _look(number) | {"markerfacecolor": "white", "linestyle": "none", "zorder": 4}
    if places:
        more = {} if transform is None else {"transform": transform}
        axes.plot([x for x, _ in places], [y for _, y in places], **look, **more)


def _look(number: int) -> dict[str, Any]:
    colour = _COLOURS[number % len(_COLOURS)]
    return {"color": colour, "marker": _MARKERS[number % len(_MARKERS)], "markersize": 7, "zorder": 3}


def _bounded(one: Interval) -> bool:
    return math.isfinite(one.low) and math.isfinite(one.high)


def _percents(rates: Sequence[Interval]) -> tuple[float, float]:
    """From and to where the axis goes: all intervals and 50 are on it."""
    low = min(50.0, *(max(0.0, one.low) if _bounded(one) else 0.0 for one in rates))
    high = max(50.0, *(min(100.0, one.high) if _bounded(one) else 100.0 for one in rates))
    room = max(2.0, 0.06 * (high - low))
    return max(-1.0, low - room), min(101.0, high + room)


def _doubling(axes: Any, sizes: Sequence[int]) -> None:
    """Ticks at 1K, 2K, 4K and so on; below 125 rows, or where all are below 1,000, at 1, 2, 4."""
    unit = 1000.0 if min(sizes) >= 125 and max(sizes) >= 1000 else 1.0
    least, most = math.log2(min(sizes) / unit), math.log2(max(sizes) / unit)
    ticks = range(math.floor(least + 1e-9), math.ceil(most - 1e-9) + 1)
    ticks = range(ticks.start, ticks.stop, 1 + len(ticks) // 10)
    axes.set_xscale("log", base=2)
    axes.set_xlim(unit * 2 ** min(least - 0.5, ticks[0] - 0.15), unit * 2 ** max(most + 0.5, ticks[-1] + 0.15))
    axes.set_xticks([unit * 2.0**tick for tick in ticks], [_rows(unit * 2.0**tick) for tick in ticks])
    axes.minorticks_off()


def _rows(size: float) -> str:
    return f"{size / 1000:,.0f}K" if size >= 1000 and size % 1000 == 0 else f"{size:,.0f}"


def _upright(axes: Any, qualities: Sequence[Interval]) -> None:
    ends = [end for one in qualities for end in (one.low, one.mean, one.high) if math.isfinite(end)]
    room = 0.06 * (max(ends) - min(ends)) or 0.05 * abs(ends[0]) or 1.0
    axes.set_ylim(min(ends) - room, max(ends) + room)


def _legend(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """Above the axes, in as many columns as there is room for; the figure grows by the lines beyond the first."""
    widest = max(_width(name, 9) for name in names) + 45
    columns = max(1, min(len(names), int((72 * _INCHES - 20) / widest)))
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(len(names) / columns) - 1))
    # Names are set afterwards: one that starts with an underscore would be left out.
    labels = [str(number) for number in range(len(names))]
    legend = figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9, handlelength=2.2
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _shown(name: str) -> str:
    """The name in the letters of the font, at most _LONGEST of them; the rest as escapes."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    letters = get_font(findfont(FontProperties(family=_FONT))).get_charmap()
    known = (c if c.isprintable() and ord(c) in letters else c.encode("unicode_escape").decode() for c in name)
    text = "".join(known)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _width(text: str, size: float) -> float:
    """In points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(family=_FONT, size=size), False)[0])


def _wrapped(text: str, size: float) -> list[str]:
    """Lines that fit into the figure."""
    letters = int(0.93 * 72 * _INCHES / (_width(text, size) / len(text)))
    return textwrap.wrap(text, letters)
