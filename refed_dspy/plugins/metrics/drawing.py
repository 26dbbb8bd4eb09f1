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
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refed_dspy.errors import ExportError, one_line
from refed_dspy.files import whole_file
from refed_dspy.metrics.intervals import Interval

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


def save(figure: Figure, path: Path) -> None:
    """Write the picture to `path` as PNG, whole or not at all; an existing file is replaced.

    Raises ExportError where it cannot be written.
    """
    try:
        with whole_file(path) as file, style(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for what the font has no letter for
            figure.savefig(file, format="png")
    except OSError as error:
        why = one_line(error.strerror or error)
        raise ExportError(f"{one_line(path, 200)}: cannot be written: {why}; choose another file") from None


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
    face = color if interval is None or bounded(interval) else "white"
    marker = _MARKERS[number % len(_MARKERS)]
    return {"color": color, "marker": marker, "markersize": 7, "markerfacecolor": face, "zorder": 3}


def bounded(interval: Interval) -> bool:
    """Whether it has two ends."""
    return math.isfinite(interval.low) and math.isfinite(interval.high)


def legend(figure: Figure, names: Sequence[str], **line: Any) -> None:
    """A legend above the axes. `line`: how its lines look."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look(number), **line) for number in range(len(names))]
    columns = 3 if len(names) <= 3 else 2
    figure.legend(handles, names, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def shown_name(name: str) -> str:
    """A name as pictures show it: one line, cut."""
    return one_line(name, _LONGEST_NAME)
