"""What the page's charts and their tables say, number by number."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from refed_dspy.sharing.report import charts, histograms
from refed_dspy.sharing.report.funnel import FunnelStep
from refed_dspy.sharing.report.map import LANDMARKS, Map, draw_map, instruction_map
from refed_dspy.sharing.report.rows import Rows

MARKUP = "<a href='x'>&"


def bars(chart: charts.Chart | None) -> dict[str, dict[float, int]]:
    """Name of a trace → place → height, of bars that are not empty."""
    assert chart is not None
    traces = chart.figure["data"]
    return {trace["name"]: {x: y for x, y in zip(trace["x"], trace["y"], strict=True) if y} for trace in traces}


def test_lengths_are_those_of_kept_rows_and_the_last_bin_has_what_is_longer() -> None:
    words = [4] * 999 + [400]
    texts: list[str | None] = ["w " * count for count in words]
    columns: dict[str, list[Any]] = {
        "kept": [1] * 1000 + [0],
        "instruction": ["one two"] * 600 + ["w " * 7] * 400 + ["dropped " * 50],
        "response": [*texts, "w " * 5000],
        "improved": [None] * 1001,
    }
    chart = histograms.lengths(Rows({}, columns))
    assert chart is not None and set(bars(chart)) == {"instruction", "plain response"}
    plain = bars(chart)["plain response"]
    assert sum(plain.values()) == 1000 and max(plain) < 10, "one text without end takes no room, and is counted"
    assert chart.text == "Median words: 2 in the instruction, 4 in the plain response."
    assert [row[:2] for row in chart.rows] == [["instruction", "1,000"], ["plain response", "1,000"]]
    assert chart.rows[1][3:] == ["4", "4", "4", "400"]
    assert histograms.lengths(Rows({}, {**columns, "kept": [0] * 1001})) is None


def test_scores_of_kept_and_dropped_rows_apart() -> None:
    decisions = [[[0, 1, 5.0, "", ""], [1, 1, 0.25, "", ""], [2, 1, 1.0, "", ""]], [[0, 0, 2.0, "", ""]]]
    decisions += [[[0, 1, 4.0, "", ""], [1, 1, 0.5, "", ""], [2, 1, 1.0, "", ""]], [[0, 1, None, "", ""]], []]
    grades, odd = histograms.scores(Rows({"filters": ["rubric", MARKUP, "constant"]}, {"decisions": decisions}))
    assert bars(grades) == {"kept": {5: 1, 4: 1}, "dropped": {2: 1}}, "a bar a grade"
    assert grades.text == "3 rows kept and 1 dropped by rubric, by the score it gave. 1 of them have none."
    assert [row[:3] for row in grades.rows] == [["kept", "2", "4.50"], ["dropped", "1", "2"]]
    assert (grades.id, odd.id) == ("scores-0", "scores-1") and bars(odd) == {"kept": {0.25: 1, 0.5: 1}}


def test_scores_of_many_values_are_counted_in_bins() -> None:
    decisions = [[[0, 1, at / 1000, "", ""]] for at in range(1000)]
    (chart,) = histograms.scores(Rows({"filters": ["rouge"]}, {"decisions": decisions}))
    heights = bars(chart)["kept"]
    assert len(heights) == 40 and sum(heights.values()) == 1000 and min(heights.values()) >= 24


def test_the_flow_says_what_was_lost() -> None:
    chart = charts.flow(
        [FunnelStep("written", 1200), FunnelStep(f"kept by {MARKUP}", 900, {"too short": 250, "odd": 50})]
    )
    assert chart.rows == [["written", "1,200", ""], [f"kept by {MARKUP}", "900", "250 too short; 50 odd"]]
    assert chart.figure["data"][0]["x"] == [1200, 900] and "1,200 instructions" in chart.text
    assert "<" not in json.dumps(chart.figure) and "&" not in json.dumps(chart.figure)


def test_costs_by_stage() -> None:
    use = {
        "calls": 1200,
        "prompt_tokens": 7000,
        "cached_tokens": 60,
        "completion_tokens": 30,
        "cost": 1.25,
        "unpriced": 0,
    }
    chart = charts.costs({MARKUP: use, "other": {**use, "cost": None, "unpriced": 1200}, "third": {**use, "cost": 0.5}})
    assert chart.rows[0] == [MARKUP, "1,200", "7,000", "60", "30", "$1.25"] and chart.rows[1][-1] == "unknown"
    assert (
        chart.text == "$1.75 in all. The price of 1,200 calls is not known; they are not in it."
        and "<" not in json.dumps(chart.figure)
    )


def test_progress_shows_rows_and_dollars_to_the_last_minute() -> None:
    points = {at: {"kept": at * 2.0, "calls": at * 9.0, "dollars": at / 10} for at in range(201)}
    chart = charts.progress(points)
    assert chart is not None
    kept, cost = chart.figure["data"]
    assert kept["y"] == [at * 2.0 for at in range(201)] and kept["x"] == list(range(201))
    assert cost["y"][-1] == 20 and cost["yaxis"] == "y2" and "yaxis2" in chart.figure["layout"]
    assert chart.rows[-1] == ["200", "400", "1,800", "$20.00"] and chart.rows[0][0] == "0" and len(chart.rows) <= 68
    assert chart.text == "400 rows were kept within 201 minutes of the first start."
    free = charts.progress({at: {**point, "dollars": 0.0} for at, point in points.items()})
    assert free is not None and len(free.figure["data"]) == 1
    assert charts.progress({0: points[1]}) is None


# --- the map


def mapped(references: list[int], features: list[int], opened: int) -> charts.Chart:
    names = {
        "references": [{"id": "0", "instruction": f"ref {MARKUP} {at}"} for at in range(opened)],
        "features": ["never", "form", "aim"],
    }
    places = np.arange(2.0 * len(references)).reshape(-1, 2)
    rows = Rows(
        names, {"number": references, "reference": references, "feature": features, "kept": [1] * len(features)}
    )
    chart = instruction_map(rows, Map(places, "by hand"))
    assert chart is not None
    return chart


def test_each_point_keeps_its_place_and_its_group() -> None:
    chart = mapped([2, 0, 2], [1, 2, 1], 3)
    traces = chart.figure["data"]
    points = {trace["name"].replace(charts.plain(MARKUP), ""): (trace["customdata"], trace["x"]) for trace in traces}
    assert points == {
        "ref  0": ([1], [2.0]), "ref  2": ([0, 2], [0.0, 4.0]), "form": ([0, 2], [0.0, 4.0]), "aim": ([1], [2.0]),
    }  # fmt: skip
    assert [trace.get("visible", True) for trace in traces] == [True, True, False, False]
    assert chart.rows == [["references", "2"], *([f"feature {n}", f"{c} instructions"] for n, c in
                          (("never", 0), ("form", 2), ("aim", 1)))]  # fmt: skip
    assert chart.text.startswith("3 instructions from 2 references") and "<" not in json.dumps(chart.figure)


def test_with_many_references_neighbours_still_differ_in_colour() -> None:
    chart = mapped(list(range(21)), [1] * 21, 21)
    first, *rest = chart.figure["data"]
    assert first["customdata"] == list(range(21)) and first["name"] == "references" and len(rest) == 1
    assert len(set(first["marker"]["color"])) == len(charts.PALETTE) and len(first["marker"]["color"]) == 21


def test_equal_texts_and_texts_without_words() -> None:
    map_ = draw_map(["bread"] * 20 + ["wine", "salt", "oil", "rice"], 1)
    assert map_ is not None and np.isfinite(map_.points).all()
    assert map_.by.startswith("by their words")
    assert draw_map(["!", "?", ".", ",", ";"]) is None
    assert draw_map(["one two", "three", "four", "five", "six"], 1) is not None


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
