"""What the page's charts and their tables say, number by number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.share.report import charts
from refed_dspy.plugins.share.report.charts import FunnelStep
from refed_dspy.plugins.share.report.drawing import (
    GREEN,
    PALETTE,
    RED,
    Axis,
    Bars,
    Dots,
    Histogram,
    Intervals,
    Lines,
)
from refed_dspy.plugins.share.report.map import LANDMARKS, Map, draw_map, instruction_map
from refed_dspy.plugins.share.report.rows import Rows
from refed_dspy.text import counted
from tests.support.said import Said

MARKUP = "<a href='x'>&"


def bars(chart: charts.Chart | None) -> dict[str, dict[float, float]]:
    """Name of a series → place → height, of columns that are not empty."""
    assert chart is not None and isinstance(chart.figure, Histogram)
    places = chart.figure.places
    return {
        name: {x: y for x, y in zip(places, heights, strict=True) if y}
        for name, (_, heights) in chart.figure.series.items()
    }


def test_the_last_bin_of_lengths_has_what_is_longer(said: Said) -> None:
    counts = {"instruction": [2] * 600 + [7] * 400, "plain response": [4] * 999 + [400]}
    chart = charts.lengths(counts)
    assert chart is not None
    plain = bars(chart)["plain response"]
    assert sum(plain.values()) == 1000 and max(plain) < 10, "one text without end takes no room, and is counted"
    said(chart.text)
    assert [row[:2] for row in chart.rows] == [[name, "1,000"] for name in bars(chart)]
    assert chart.rows[1][3:] == ["4", "4", "4", "400"]
    assert charts.lengths({}) is None


def decided(name: str, kept: int, dropped: int) -> dict[str, Any]:
    return {"filter": name, "kept": kept, "dropped": dropped}


def test_scores_of_kept_and_dropped_rows_apart(said: Said) -> None:
    filters = [decided("guard", 5, 0), decided("rubric", 3, 1), decided(MARKUP, 2, 0), decided("constant", 2, 0)]
    given = {"constant": ([], [1.0, 1.0]), "rubric": ([2.0], [5.0, 4.0]), MARKUP: ([], [0.25, 0.5])}
    grades, odd = charts.scores(filters, given)
    assert bars(grades) == {"kept": {5: 1, 4: 1}, "dropped": {2: 1}}, "a bar a grade"
    said(grades.text)
    assert [row[:3] for row in grades.rows] == [["kept", "2", "4.50"], ["dropped", "1", "2"]]
    assert (grades.id, odd.id) == ("scores-0", "scores-1") and bars(odd) == {"kept": {0.25: 1, 0.5: 1}}


def test_scores_of_one_value_tell_no_row_from_another() -> None:
    assert charts.scores([decided("rubric", 2, 1)], {"rubric": ([4.0], [4.0])}) == []


def test_scores_of_many_values_are_counted_in_bins() -> None:
    (chart,) = charts.scores([decided("rouge", 1000, 0)], {"rouge": ([], [at / 1000 for at in range(1000)])})
    heights = bars(chart)["kept"]
    assert len(heights) == 40 and sum(heights.values()) == 1000 and min(heights.values()) >= 24


def test_the_flow_says_what_was_lost(said: Said) -> None:
    steps = [FunnelStep("written", 1200), FunnelStep("kept by one", 900, {"too short": 250, "odd": 50})]
    chart = charts.flow(steps, "Flow", "1,200 in all.")
    assert chart is not None and isinstance(chart.figure, Bars)
    said([row[2] for row in chart.rows])
    assert chart.figure.ends == ["1,200 · 100%", "900 · 75%"]
    assert charts.flow(steps[:1], "Flow", "") is None, "nothing was lost: there is nothing to see"


def test_costs_by_stage(said: Said) -> None:
    use: dict[str, Any] = {
        "calls": 1200, "prompt_tokens": 7000, "cached_tokens": 60, "completion_tokens": 30, "cost": 1.25, "unpriced": 0,
        "in_flight_cost": 0.25,
    }  # fmt: skip
    dear = {
        "a_stage": use,
        "other": {**use, "cost": None, "unpriced": 1200, "in_flight_cost": 0},
        "third": {**use, "cost": 0.5},
    }
    chart = charts.costs(dear)
    assert chart.rows[0] == ["a stage", "1,200", "7,000", "60", "30", "$1.25"] and chart.rows[1][-1] == "unknown"
    said(chart.text)
    assert isinstance(chart.figure, Bars) and chart.figure.series == {"dollars": [1.25, 0, 0.5]}
    assert [[part.width for part in parts] for _, parts, _ in chart.figure.lines] == [[100], [0], [40]]


def test_progress_shows_rows_and_dollars_to_the_last_minute(said: Said) -> None:
    points = {at: {"kept": at * 2.0, "calls": at * 9.0, "dollars": at / 10} for at in range(201)}
    chart = charts.progress(points)
    assert chart is not None
    figure = chart.figure
    assert isinstance(figure, Lines) and figure.places == list(range(201)) and figure.right is not None
    kept, money = figure.series.values()
    assert kept == [at * 2.0 for at in range(201)] and money[-1] == 20
    assert figure.marks[0][0].startswith("M0.0 100.00L0.5 ") and "100.0 4.76" in figure.marks[1][0], "below the top"
    assert chart.rows[-1] == ["200", "400", "1,800", "$20.00"] and chart.rows[0][0] == "0" and len(chart.rows) <= 68
    said(chart.text)
    free = charts.progress({at: {**point, "dollars": 0.0} for at, point in points.items()})
    assert free is not None and isinstance(free.figure, Lines) and free.figure.right is None
    assert charts.progress({0: points[1]}) is None


def test_round_numbers_on_an_axis() -> None:
    assert Axis("", 0, 42).ticks == [(0, "0"), (23.81, "10"), (47.62, "20"), (71.43, "30"), (95.24, "40")]
    assert [label for _, label in Axis("", -1.5, 1.5).ticks] == ["-1", "0", "1"]
    assert [label for _, label in Axis("", 0, 2, whole=True).ticks] == ["0", "1", "2"]
    assert [label for _, label in Axis("", 0, 0.0031).ticks] == ["0", "0.001", "0.002", "0.003"]
    assert Axis("", 3, 3).ticks == [(0, "3")], "nothing to spread"


def test_columns_stand_on_each_other_only_where_they_are_stacked(said: Said) -> None:
    series: dict[str, tuple[int, list[float]]] = {"kept": (GREEN, [1, 3]), "dropped": (RED, [1, 0])}
    stacked = Histogram("score", [1.0, 2.0], 1.0, series, stacked=True)
    (_, first, width, height, color, title), (_, tallest, *_), (left, second, *_) = stacked.columns
    assert (width, color) == (50, PALETTE[GREEN])
    said(title)
    assert left == 0 and first + height == 100 and second + height == pytest.approx(first, abs=0.02)
    assert tallest == 4.76, "the tallest stays below the top"
    behind = Histogram("score", [1.0, 2.0], 1.0, series, stacked=False)
    assert behind.columns[2][1] == behind.columns[0][1]


def test_intervals_stay_within_their_axis_and_one_may_be_missing() -> None:
    inf = float("inf")
    rates: dict[str, list[Interval | None]] = {
        "win rate": [Interval(40.0, -5.0, 60.0, 9, 9), Interval(70.0, -inf, inf, 1, 1)],
        "length-controlled": [None, Interval(50.0, 20.0, 80.0, 9, 9)],
    }
    first, second = Intervals(["a", "b"], rates, ["", ""], 0, 100, 50).lines
    assert [(part.left, part.width, part.mean) for part in first[1]] == [(0, 60, 40)]
    assert [(part.left, part.width, part.mean) for part in second[1]] == [(70, 0, 70), (20, 60, 50)]


# --- the map


def mapped(references: list[int], features: list[int], opened: int) -> Dots:
    names: dict[str, Any] = {
        "references": [{"id": "0", "instruction": f"ref {at}"} for at in range(opened)],
        "features": ["never", "form", "aim"],
    }
    places = np.arange(2.0 * len(references)).reshape(-1, 2)
    rows = Rows(
        names, {"number": references, "reference": references, "feature": features, "kept": [1] * len(features)}
    )
    chart = instruction_map(rows, Map(places, "words"))
    assert chart is not None and chart.title == "Map of instructions, by words" and isinstance(chart.figure, Dots)
    assert chart.text.startswith(f"{len(features)} instructions from {len(set(references))} references")
    assert chart.rows[1:] == [[f"feature {name}", counted(features.count(at), "instruction")]
                              for at, name in enumerate(names["features"])]  # fmt: skip
    return chart.figure


def test_each_point_keeps_its_place_and_its_group() -> None:
    figure = mapped([2, 0, 2], [1, 2, 1], 3)
    assert figure.places == [(0, 0), (50, 50), (100, 100)]
    assert figure.colourings == {
        "reference": ([("ref 0", PALETTE[0]), ("ref 2", PALETTE[1])], [1, 0, 1]),
        "feature": ([("form", PALETTE[0]), ("aim", PALETTE[1])], [0, 1, 0]),
    }
    assert figure.drawn[1] == ((50, 50), "a0 b1")


def test_with_many_references_neighbours_still_differ_in_colour() -> None:
    legend, colors = mapped(list(range(21)), [1] * 21, 21).colourings["reference"]
    assert len(legend) == 1 and colors[:3] == [0, 1, 2] and colors[10:13] == [0, 1, 2], "and the legend names none"


def test_equal_texts_and_texts_without_words() -> None:
    map_ = draw_map(["bread"] * 20 + ["wine", "salt", "oil", "rice"], 1)
    assert map_ is not None and np.isfinite(map_.points).all()
    assert map_.by == "words"
    assert draw_map(["!", "?", ".", ",", ";"]) is None
    assert draw_map([f"{word} more" for word in "abcde"], 1) is not None


@pytest.mark.slow
def test_a_text_beyond_the_landmarks_lies_among_its_like() -> None:
    from sklearn.neighbors import NearestNeighbors

    kinds = ("bake rye loaf", "prove matrix lemma", "paint blue wall", "sing loud choir")
    map_ = draw_map([f"{kinds[at % 4]} {at // 4}" for at in range(LANDMARKS + 120)], 2)
    assert map_ is not None
    points = map_.points
    assert len(np.unique(points.round(6), axis=0)) == LANDMARKS + 120, "each has its own place"
    near = NearestNeighbors(n_neighbors=6).fit(points).kneighbors(points, return_distance=False)
    assert (near % 4 == (np.arange(len(points)) % 4)[:, None]).mean() > 0.98
