"""Few verdicts of people, and a judge's on everything: the figures of ppi-python, and intervals that cover."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from refed_dspy.measures.intervals import student
from refed_dspy.measures.powered import FEWEST_LABELLED, Parts, powered_mean

PEOPLE = [1, 0, 1, 1, 0.5, 1, 0, 1, 1, 0.5, 1, 1]
THERE = [1, 0.5, 1, 1, 0, 1, 0, 1, 0.5, 0.5, 1, 0]
ELSEWHERE = [1, 0, 1, 0.5, 1, 0, 1, 1, 0, 1, 0.5, 0, 1, 1, 1, 0, 1, 0.5, 1, 0, 1, 1, 0.5, 1]
NORMAL = 1.959963984540054


def test_without_clusters_it_is_that_of_ppi_python() -> None:
    """ppi_mean_pointestimate and ppi_mean_ci (ppi-python 0.2.3) with alpha 0.05 and this weight as its lambda, 0.3576;
    its own tuning, which takes both samples' variances for one, comes to 0.7642 (0.5746 to 0.9539)."""
    parts = Parts.of(np.array([PEOPLE, THERE, THERE], dtype=float).T, np.array(ELSEWHERE, dtype=float))
    n = len(PEOPLE)
    half = NORMAL * math.sqrt(parts.squares / n**2 + parts.of_others)
    ends = (0.7649006622516556, 0.5752909504546889, 0.9545103740486224)
    assert (parts.mean, parts.mean - half, parts.mean + half) == pytest.approx(ends, abs=1e-12)
    assert parts.weight * 24 / 36 == pytest.approx(0.3576158940397351, abs=1e-12)
    made = powered_mean([*THERE, *ELSEWHERE], dict(enumerate(PEOPLE)))
    assert made is not None and (made.interval.mean, made.weight) == pytest.approx((parts.mean, parts.weight))
    assert made.interval.high == 1.0 and made.interval.low < ends[1], "for few: wider than ppi-python's, and in range"


def drawn(seed: int, right: float, biased: float = 0.0) -> tuple[list[float], dict[int, float], list[int]]:
    """100 clusters of 4 of which people, whose true rate is 0.7, judged one in each of 30."""
    rng = random.Random(seed)
    truth = [float(rng.random() < 0.7) for _ in range(400)]
    said = [each if rng.random() < right else float(rng.random() < 0.5) for each in truth]
    judged = [1.0 if rng.random() < biased else each for each in said]
    return judged, {4 * place: truth[4 * place] for place in range(30)}, [place // 4 for place in range(400)]


@pytest.mark.parametrize(("right", "biased", "width"), [(0.9, 0.0, 0.3), (0.9, 0.3, 0.36), (0.0, 0.0, 0.5)])
def test_the_interval_covers_whatever_the_judge_is_and_is_narrow_where_it_is_good(
    right: float, biased: float, width: float
) -> None:
    made = [powered_mean(*drawn(seed, right, biased)) for seed in range(300)]
    intervals = [each.interval for each in made if each is not None]
    assert len(intervals) == 300
    assert sum(each.low <= 0.7 <= each.high for each in intervals) > 0.92 * 300
    assert sum(each.high - each.low for each in intervals) / 300 < width
    weight = sum(each.weight for each in made if each is not None) / 300
    assert weight > 0.6 if right else weight < 0.25


def test_where_people_judged_everything_the_judge_has_no_weight() -> None:
    judged = [float(place % 2) for place in range(20)]
    people = {place: float(place % 3 > 0) for place in range(20)}
    made = powered_mean(judged, people)
    assert made is not None and made.weight == 0 and made.interval.mean == pytest.approx(sum(people.values()) / 20)
    values = np.array(list(people.values()))
    half = student(19) * math.sqrt((((values - values.mean()) ** 2).sum() + 0.5) / 18 / 20)
    assert made.interval.low == pytest.approx(values.mean() - half)


def test_the_order_changes_nothing_and_a_few_labels_give_nothing() -> None:
    judged, people, clusters = drawn(1, 0.9)
    order = random.Random(0).sample(range(400), 400)
    turned = {order.index(place): said for place, said in people.items()}
    made = powered_mean(judged, people, clusters)
    assert made == powered_mean([judged[place] for place in order], turned, [clusters[place] for place in order])
    assert made is not None and (made.interval.n, made.interval.clusters) == (30, 30)
    few = dict(list(people.items())[: FEWEST_LABELLED - 1])
    assert powered_mean(judged, few, clusters) is None
    with pytest.raises(ValueError, match="not from"):
        powered_mean(judged, {**people, 0: 2.0}, clusters)
    with pytest.raises(ValueError, match="clusters"):
        powered_mean(judged, people, clusters[1:])
