"""Gains: Hall's interval, the rule that promotes, and what can be found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from refed_dspy.measures.intervals import (
    MIN_CLUSTERS,
    Interval,
    chance_of,
    clusters_for,
    gain_interval,
    is_gain,
    least_gain,
    mean_interval,
    spread_of,
    within,
)

EIGHT = [0.31, 0.02, 0.18, 0.25, -0.07, 0.11, 0.4, 0.16]


def hall(values: list[float], t: float) -> float:
    """The transformation as the paper has it: what stands for Student's t."""
    a = float(stats.skew(values, bias=False)) / math.sqrt(len(values))
    return t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6


@pytest.mark.parametrize(
    "values", [EIGHT, [0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.1, 0.12, 0.09, 0.11, -0.6], [0.0] * 9 + [0.5]], ids=str
)
def test_its_ends_are_where_the_transformed_t_is_students_quantile(values: list[float]) -> None:
    made, n = gain_interval(values), len(values)
    z = float(stats.t.ppf(0.9925, n - 1))
    for end, quantile in ((made.low, z), (made.high, -z)):
        t = math.sqrt(n) * (float(np.mean(values)) - end) / float(np.std(values, ddof=1))
        assert hall(values, t) == pytest.approx(quantile)
    assert made.low < made.mean < made.high


@pytest.mark.parametrize("interval", [gain_interval, mean_interval])
@pytest.mark.parametrize("values", [[0.3] * 8, [0.0] * 5, [0.1 + 0.2, 0.3, 0.3], [-2.0, -2.0]])
def test_clusters_that_are_all_equal_give_no_width(
    interval: Callable[[Sequence[float]], Interval], values: list[float]
) -> None:
    made = interval(values)
    assert made.low == made.mean == made.high == pytest.approx(values[0])


def test_two_clusters_and_one() -> None:
    low, _ = stats.t.interval(0.985, 1, loc=0.2, scale=0.1)
    assert gain_interval([0.1, 0.3]).low == pytest.approx(low)
    assert gain_interval([0.1, 0.3], ["a", "a"]) == Interval(0.2, -math.inf, math.inf, 2, 1)


# --- the rule


@pytest.mark.parametrize(
    ("low", "clusters", "promoted"),
    [(0.01, 8, True), (0.0, 8, False), (-0.01, 8, False), (0.01, MIN_CLUSTERS, True), (0.01, MIN_CLUSTERS - 1, False)],
)
def test_a_gain_is_above_zero_and_stands_on_enough_clusters(low: float, clusters: int, promoted: bool) -> None:
    assert is_gain(Interval(0.2, low, 0.4, 100, clusters)) is promoted


def test_the_same_small_gain_everywhere_is_one_but_rounding_is_none() -> None:
    assert is_gain(gain_interval([0.25] * 5)) and not is_gain(gain_interval([0.25] * 4))
    assert not is_gain(gain_interval([0.0] * 8))
    leftover = gain_interval([0.1 + 0.2 - 0.3] * 8)
    assert leftover.low > 0 and not is_gain(leftover)
    assert not is_gain(gain_interval([1.0] * 50, ["one"] * 50))


@pytest.mark.parametrize(("clusters", "skewed"), [(8, True), (16, False)])
def test_where_nothing_was_gained_little_is_promoted(clusters: int, skewed: bool) -> None:
    """Also where most gain a little and a few lose much: Student's interval promotes 8 to 10% of those."""
    rng = np.random.default_rng(3)
    draws = 1 - rng.exponential(size=(400, clusters)) if skewed else rng.normal(size=(400, clusters))
    assert sum(is_gain(gain_interval(row.tolist())) for row in draws) <= 16


# --- what can be found


def test_the_chance_of_a_gain_is_how_often_it_is_found() -> None:
    rng = np.random.default_rng(5)
    found = [is_gain(gain_interval(rng.normal(0.15, 0.1, 12).tolist())) for _ in range(500)]
    assert chance_of(0.15, 0.1, 12) == pytest.approx(np.mean(found), abs=0.04)
    assert chance_of(0.15, 0.1, MIN_CLUSTERS - 1) == 0 and chance_of(0.01, 0.0, 8) == 1


def test_the_least_gain_and_the_clusters_for_one_are_the_other_way_round() -> None:
    least = least_gain(0.1, 12)
    assert chance_of(least, 0.1, 12) == pytest.approx(0.8, abs=0.01)
    assert clusters_for(least, 0.1) == 12 and clusters_for(0.15, 0.1, chance=0.95) in range(12, 16)
    assert clusters_for(0.001, 0.1) is None and math.isinf(least_gain(0.1, 4))


def test_an_interval_of_differences_stays_within_them() -> None:
    assert within(Interval(0.2, -1.4, 1.2, 3, 3)) == Interval(0.2, -1.0, 1.0, 3, 3)
    assert math.isinf(within(Interval(0.2, -math.inf, math.inf, 2, 1)).low)


def test_the_spread_is_of_clusters() -> None:
    assert spread_of([0.0, 0.2, 0.4], ["a", "a", "b"]) == pytest.approx(np.std([0.1, 0.4], ddof=1))
    assert math.isnan(spread_of([1.0], ["a"]))
