"""Pictures: their files, what is drawn in them, and names that Matplotlib would take for something else."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.collections import LineCollection

from refed_dspy.errors import ExportError
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.metrics.drawing import Bar, Point, filter_picture, save, win_rate_picture
from tests.support.said import Said

pytestmark = pytest.mark.slow

HOSTILE = ["$x_1$", "$\\frac{", "_hidden", "a\nb\tc", "\x00\x1b[31m\u202e\u200b", "100% & {0} <b>--></b>"]
HOSTILE += ["指令", "", "🙂", "\\alpha"]
LONG = ["W" * 100_000, "i" * 5_000]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def interval(mean: float, half: float = 2.0) -> Interval:
    return Interval(mean, mean - half, mean + half, 100, 100)


def unbounded(mean: float) -> Interval:
    return Interval(mean, -math.inf, math.inf, 3, 1)


def bars(names: list[str]) -> list[Bar]:
    return [Bar(name, interval(40 + i), interval(45 + i) if i % 2 else None) for i, name in enumerate(names)]


CURVES = {
    "random": [Point(1000 * 2**k, interval(36 + k)) for k in range(4)],
    "judge": [Point(1000 * 2**k, interval(41 + k)) for k in reversed(range(3))],
}
TWO = bars(["seed only", "compiled"])


def drawn(figure: Any) -> dict[str, list[list[float]]]:
    """Marker → the places of every line that has it, one after the other."""
    places: dict[str, list[list[float]]] = {}
    for line in figure.axes[0].lines:
        if line.get_marker() not in (None, "None", ""):
            places.setdefault(str(line.get_marker()), []).extend(np.asarray(line.get_xydata()).tolist())
    return places


def whiskers(figure: Any) -> list[list[list[float]]]:
    collections = [lines for lines in figure.axes[0].collections if isinstance(lines, LineCollection)]
    return [np.asarray(segment).tolist() for lines in collections for segment in lines.get_segments()]


def y_names(figure: Any) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def legend_names(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def inside(figure: Any) -> None:
    """No text ends outside the figure, and none lies over another one or over the axes."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = [*figure.legends[0].get_texts(), axes.xaxis.label, axes.yaxis.label, figure._supxlabel]
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, sorted(axes.get_ylim()))):
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [text.get_window_extent() for text in texts if text and text.get_text()]
    assert len(boxes) > 2
    # A pixel, for the antialiasing.
    for box in boxes:
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1
    for i, box in enumerate(boxes):
        assert not any(box.shrunk(0.98, 0.98).overlaps(other.shrunk(0.98, 0.98)) for other in boxes[:i])
        assert not axes.bbox.shrunk(0.99, 0.99).overlaps(box.shrunk(0.98, 0.98))
    assert axes.bbox.height > 0.25 * figure.bbox.height and axes.bbox.width > 0.3 * figure.bbox.width


# --- files


@pytest.mark.parametrize("figure", [lambda: win_rate_picture(TWO), lambda: filter_picture(CURVES, caption="A proxy.")])
def test_saving_replaces_a_file_whole(figure: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    save(figure(), path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert width == 800 and 150 <= height <= 700
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_what_cannot_be_written_is_reported_in_one_line(said: Said, tmp_path: Path) -> None:
    with said.by(ExportError) as caught:
        save(win_rate_picture(TWO), tmp_path / "none\nsuch" / "a.png")
    assert "\n" not in str(caught.value)


def test_the_users_settings_neither_show_nor_change(tmp_path: Path) -> None:
    save(win_rate_picture(TWO), tmp_path / "plain.png")
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "font.size": 40, "savefig.dpi": 30}):
        before = dict(matplotlib.rcParams)
        save(win_rate_picture(TWO), tmp_path / "again.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


# --- what is drawn


def test_win_rates_are_where_they_belong(said: Said) -> None:
    figure = win_rate_picture([Bar("first", interval(40, 3), interval(45, 1)), Bar("second", interval(60, 2))])
    (first, second), (controlled,) = drawn(figure).values()
    assert (first[0], second, controlled[0]) == (40, [60, 1], 45)
    assert first[1] < 0 < controlled[1], "apart where there are two"
    assert sorted((start[0], end[0]) for start, end in whiskers(figure)) == [(37, 43), (44, 46), (58, 62)]
    assert y_names(figure) == ["first", "second"]
    said(legend_names(figure))
    axes = figure.axes[0]
    top, bottom = axes.transData.transform([(50, 0), (50, 1)])[:, 1]
    assert top > bottom, "the first on top"
    assert [50, 50] in [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    low, high = axes.get_xlim()
    assert low < 37 and high > 62


def test_fifty_is_on_the_axis_and_the_axis_stays_near_0_to_100() -> None:
    for value in (0.0, 40.0, -3.0):
        low, high = filter_picture({"x": [Point(9, interval(value, 0))]}, caption="").axes[0].get_ylim()
        assert low < value < high, "where all values are equal, too"
    for mean in (3.0, 50.0, 99.0):
        low, high = win_rate_picture([Bar("x", interval(mean, 5))]).axes[0].get_xlim()
        assert -1 <= low < 50 < high <= 101
        assert low <= max(0, mean - 5) and high >= min(100, mean + 5)


def test_curves_hold_their_data_in_order_of_size(said: Said) -> None:
    figure: Any = filter_picture(CURVES, caption="A proxy.", quality="mean grade")
    random, judge = drawn(figure).values()
    assert [y for _, y in random] == [36, 37, 38, 39] and [y for _, y in judge] == [41, 42, 43]
    sizes = [1000, 2000, 4000, 8000]
    assert [x for x, _ in random] == pytest.approx(sizes, rel=0.03)
    assert [x for x, _ in judge] == pytest.approx(sizes[:3], rel=0.03) and random[0][0] < 1000 < judge[0][0]
    assert [(start[1], end[1]) for start, end in whiskers(figure)] == [(y - 2, y + 2) for _, y in random + judge]
    axes = figure.axes[0]
    assert axes.get_xscale() == "log" and axes.xaxis.get_transform().base == 2
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1,000", "2,000", "4,000", "8,000"]
    assert figure.get_supxlabel() == "A proxy."
    said(axes.get_ylabel())
    assert len({line.get_color() for line in axes.lines}) == 2
    low, high = axes.get_ylim()
    assert low < 34 and high > 45


@pytest.mark.parametrize(
    ("sizes", "ticks"),
    [([1000], ["1,000"]), ([3, 24, 25], ["3", "25"]), ([1, 10_000_000], ["1", "10,000,000"]), ([1], ["1"])],
)
def test_sizes_that_were_measured_are_on_the_axis(sizes: list[int], ticks: list[str]) -> None:
    figure = filter_picture({"x": [Point(size, interval(40)) for size in sizes]}, caption="")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ticks
    low, high = axes.get_xlim()
    assert low < min(sizes) and max(sizes) < high


def test_what_has_no_interval_is_an_open_marker(tmp_path: Path) -> None:
    for figure in (
        win_rate_picture([Bar("x", unbounded(60)), Bar("y", interval(70))]),
        filter_picture({"x": [Point(1000, unbounded(60)), Point(2000, interval(70))]}, caption=""),
    ):
        (hollow,) = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
        assert 60 in np.asarray(hollow.get_xydata()) and np.isfinite(np.array(whiskers(figure))).all()
        save(figure, tmp_path / "a.png")


def test_the_legend_names_what_is_drawn_and_what_a_filter_kept_nothing_of(said: Said) -> None:
    figure = win_rate_picture([Bar("x", interval(40))])
    assert len(drawn(figure)) == 1, "no length control"
    said(legend_names(figure))
    said(legend_names(filter_picture({**CURVES, "judge 2": []}, caption="")))


# --- names and captions are data


def test_hostile_names_are_shown_in_one_line(said: Said, tmp_path: Path) -> None:
    shown = ["$x_1$", "$\\frac{", "_hidden", "a b c", "??[31m??", "100% & {0} <b>--></b>", "指令", "", "🙂", "\\alpha"]
    bar_figure = win_rate_picture(bars(HOSTILE), caption="$x_{$ and\nmore {0} 指令 \x00")
    assert y_names(bar_figure) == shown
    line_figure = filter_picture(
        {name: [Point(1000, interval(i))] for i, name in enumerate(HOSTILE)}, caption="$y_{$", quality="$q_{$"
    )
    assert legend_names(line_figure) == shown
    for figure in (bar_figure, line_figure):
        save(figure, tmp_path / "a.png")
    said(bar_figure.get_supxlabel())


def test_a_dollar_is_drawn_as_one() -> None:
    """Were it read as mathematics, the signs would be gone and both pictures would be as wide."""
    wide = [win_rate_picture(bars([name])) for name in ("$x$", "x")]
    for figure in wide:
        figure.draw_without_rendering()
    dollars, plain = (figure.axes[0].get_yticklabels()[0].get_window_extent().width for figure in wide)
    assert dollars > plain + 10


def test_long_names_are_cut_and_any_number_of_them_fits() -> None:
    figure = win_rate_picture(bars([*LONG, "short"]), caption="word " * 100)
    assert y_names(figure) == ["W" * 31 + "…", "i" * 31 + "…", "short"]
    inside(figure)
    inside(win_rate_picture(bars([f"program {i}" for i in range(20)]), caption="As judged."))
    curves = {name: [Point(1000, interval(1))] for name in [*LONG, *"abcdefgh"]}
    inside(filter_picture(curves, caption="word " * 100))
