"""Intervals, the rule that promotes, and correlations: against SciPy, against values by hand, and by simulation."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from refed_dspy.measures.intervals import Interval, correlations, mean_interval
from tests.support.said import Said

EIGHT = [0.05, -0.02, 0.13, 0.22, 0.31, -0.11, 0.07, 0.18]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def student(values: list[float]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return float(low), float(high)


# --- the mean and its interval


def test_the_levels_are_those_of_the_expanded_percentile_interval() -> None:
    level = stats.norm.cdf(-math.sqrt(8 / 7) * stats.t.ppf(0.975, 7))
    assert level == pytest.approx(0.00574, abs=1e-5), "2.5% without the expansion"
    draws = np.random.default_rng(7).choice(EIGHT, (30_000, 8)).mean(axis=1)
    interval = mean_interval(EIGHT)
    assert interval.mean == pytest.approx(np.mean(EIGHT)) and (interval.n, interval.clusters) == (8, 8)
    assert interval.low == pytest.approx(np.quantile(draws, level), abs=0.01)
    assert interval.high == pytest.approx(np.quantile(draws, 1 - level), abs=0.01)
    plain_low, plain_high = np.quantile(draws, [0.025, 0.975])
    assert interval.low < plain_low - 0.01 and interval.high > plain_high + 0.01


def test_of_many_clusters_it_is_students_interval() -> None:
    values = np.random.default_rng(3).normal(0.4, 0.2, 400).tolist()
    interval, (low, high) = mean_interval(values), student(values)
    assert [interval.low, interval.high] == pytest.approx([low, high], abs=0.002)


def test_each_cluster_counts_the_same_however_many_values_it_gave() -> None:
    interval = mean_interval([1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 0.1], ["a", "a", "a", "a", "b", "c", "c"])
    assert interval.mean == pytest.approx((1.0 + 0.0 + 0.3) / 3) and (interval.n, interval.clusters) == (7, 3)
    once, often = mean_interval(EIGHT), mean_interval(EIGHT * 20, list(range(8)) * 20)
    assert often.n == 160 and often.high - often.low == pytest.approx(once.high - once.low)
    taken_apart = mean_interval(EIGHT * 20)
    assert taken_apart.high - taken_apart.low < (once.high - once.low) / 3


def test_a_seed_gives_one_interval_in_whatever_order_the_values_come() -> None:
    rows = [(value + shift, i) for i, value in enumerate(EIGHT) for shift in (-0.1, 0.02, 0.3)]
    first = mean_interval([value for value, _ in rows], [i for _, i in rows])
    random.Random(1).shuffle(rows)
    values, clusters = [value for value, _ in rows], [i for _, i in rows]
    assert mean_interval(values, clusters) == first
    other = mean_interval(values, clusters, seed=1)
    assert other != first and other.low == pytest.approx(first.low, abs=0.01)


def test_the_draws_leave_the_global_random_state_alone() -> None:
    np.random.seed(5)
    untouched = np.random.random()
    np.random.seed(5)
    mean_interval(EIGHT)
    assert np.random.random() == untouched


# --- few clusters


def test_one_cluster_says_nothing_of_the_others(said: Said) -> None:
    interval = mean_interval([0.25, 0.75, 0.5], ["a"] * 3)
    assert interval == Interval(0.5, -math.inf, math.inf, 3, 1)
    said([str(each) for each in (interval, Interval(0.123, 0.034, 0.209, 8, 8), Interval(-0.001, -0.2, 0.1, 8, 8))])
    stored = {"mean": 0.5, "low": None, "high": None, "n": 3, "clusters": 1}
    assert Interval.of_stored(stored) == interval


@pytest.mark.parametrize("n", [2, 3, 4])
def test_below_five_clusters_it_is_students_interval(n: int) -> None:
    """The range of so few means, which no bootstrap leaves, is narrower."""
    interval, (low, high) = mean_interval(EIGHT[:n]), student(EIGHT[:n])
    assert [interval.low, interval.high] == pytest.approx([low, high])
    assert interval.low < min(EIGHT[:n]) and interval.high > max(EIGHT[:n])


def test_from_six_clusters_on_the_bootstrap_stands_alone() -> None:
    """Where all of n fair coins fall alike no more often than the interval may miss."""
    assert 2.0**-4 > 0.05 >= 2.0**-5
    outlier = [0.0] * 5 + [1.0]  # Student's interval reaches below zero, no mean of these does
    assert mean_interval(outlier).low >= 0
    low, _ = student(outlier[1:])
    assert mean_interval(outlier[1:]).low == pytest.approx(low) and low < 0


# --- what is refused


def test_what_cannot_be_used_is_refused(said: Said) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        for predicted, observed in (([1, 2, bad], [1, 2, 3]), ([1, 2, 3], [1, 2, bad])):
            with pytest.raises(ValueError, match="finite"):
                correlations(predicted, observed)
        with pytest.raises(ValueError, match="finite"):
            mean_interval([0.1, bad, 0.3])
    with said.by(ValueError):
        mean_interval([])
    with said.by(ValueError):
        mean_interval([1, 2, 3], ["a", "b"])
    with said.by(ValueError):
        correlations([1, 2], [1, 2, 3])


# --- correlations


def test_correlations_by_hand() -> None:
    made = correlations([1, 2, 3, 4], [1, 3, 2, 4])
    assert made.pearson == pytest.approx(0.8) and made.spearman == pytest.approx(0.8)
    curved = correlations([1, 2, 3, 4, 5], [-1, -10, -100, -1_000, -10_000])
    assert curved.spearman == pytest.approx(-1)
    assert curved.pearson is not None and -0.8 < curved.pearson < -0.7


@pytest.mark.parametrize(
    ("predicted", "observed"),
    [([], []), ([1], [2]), ([1, 2], [2, 1]), ([3, 3, 3], [1, 2, 3]), ([1, 2, 3], [0.3, 0.1 + 0.2, 0.3])],
)
def test_where_a_correlation_is_undefined_there_is_none(predicted: list[float], observed: list[float]) -> None:
    made = correlations(predicted, observed)
    assert (made.pearson, made.spearman) == (None, None)
