"""Krippendorff's alpha: against his own example, against NLTK, and its interval."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import chain
from typing import Any

import pytest

from refed_dspy.plugins.judge.people import Scale, Unit, alpha_interval
from tests.support.said import Said

# "Computing Krippendorff's Alpha-Reliability" (2011), section D: four observers, twelve units, missing values.
EXAMPLE = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
UNITS = [[float(value) for value in column if value != "."] for column in zip(*map(str.split, EXAMPLE), strict=True)]


def alpha(units: list[Unit], scale: Scale, **more: Any) -> float:
    found = alpha_interval(units, scale, **more)
    assert found is not None
    return found.mean


def drawn(seed: int) -> list[Unit]:
    rng = random.Random(seed)
    values, people = rng.choice([2, 3, 5]), rng.randint(2, 5)
    told = [[rng.randint(1, values) for _ in range(people) if rng.random() < 0.8] for _ in range(rng.randint(4, 30))]
    return [[float(min(value, unit[0] + 1)) for value in unit] for unit in told if unit]


def nltk_alpha(units: list[Unit], scale: Scale) -> float:
    from nltk.metrics.agreement import AnnotationTask  # takes seconds to import
    from nltk.metrics.distance import binary_distance

    counts = Counter(chain.from_iterable(unit for unit in units if len(unit) > 1))

    def ordinal(one: float, other: float) -> float:
        low, high = sorted((one, other))
        between = sum(count for value, count in counts.items() if low <= value <= high)
        return float(between - (counts[low] + counts[high]) / 2) ** 2

    rows = [(who, place, value) for place, unit in enumerate(units) for who, value in enumerate(unit)]
    return float(AnnotationTask(rows, ordinal if scale == "ordinal" else binary_distance).alpha())


@pytest.mark.parametrize(("scale", "published"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_his_own_example(scale: Scale, published: float) -> None:
    found = alpha_interval(UNITS, scale)
    assert found is not None
    assert found.mean == pytest.approx(published, abs=5e-4)
    assert (found.n, found.clusters) == (11, 11), "the unit with one value does not count"
    assert -1 < found.low < found.mean < found.high <= 1


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["nominal", "ordinal"])
def test_as_nltk_has_it(scale: Scale) -> None:
    compared = 0
    for seed in range(12):
        units = drawn(seed)
        if len({value for unit in units if len(unit) > 1 for value in unit}) > 1:
            assert alpha(units, scale) == pytest.approx(nltk_alpha(units, scale), abs=1e-9), seed
            compared += 1
    assert compared > 8


def test_full_agreement_chance_and_worse() -> None:
    same = alpha_interval([[1.0, 1.0], [0.0, 0.0]] * 10, "nominal")
    assert same is not None and (same.mean, same.low, same.high) == (1, 1, 1)
    rng = random.Random(1)
    chance = alpha_interval([[float(rng.random() < 0.5) for _ in range(3)] for _ in range(200)], "nominal")
    assert chance is not None and chance.low < 0 < chance.high and abs(chance.mean) < 0.09
    assert alpha([[1.0, 0.0]] * 20, "nominal") < 0


@pytest.mark.parametrize("units", [[], [[1.0]], [[1.0], [0.0]], [[1.0, 1.0], [1.0, 1.0, 1.0]]])
def test_without_two_values_there_is_none(units: list[Unit]) -> None:
    assert alpha_interval(units, "nominal") is None


def test_units_of_a_cluster_are_resampled_together(said: Said) -> None:
    units: list[Unit] = [*[[1.0, 1.0]] * 30, *[[0.0, 0.0]] * 30, *[[1.0, 0.0]] * 30]
    apart, together = alpha_interval(units, "nominal"), alpha_interval(units, "nominal", [i // 6 for i in range(90)])
    assert apart is not None and together is not None and apart.mean == together.mean
    assert together.clusters == 15 and together.high - together.low > 1.5 * (apart.high - apart.low)
    alone = alpha_interval(units, "nominal", ["one"] * 90)
    assert alone is not None and (alone.low, alone.high) == (-1, 1), "one cluster says nothing of others"
    with said.by(ValueError):
        alpha_interval(units, "nominal", ["one"])


def test_the_order_does_not_count_and_the_seed_does() -> None:
    units = drawn(7)
    first = alpha_interval(units, "nominal", seed=3)
    assert alpha_interval(units[::-1], "nominal", seed=3) == first != alpha_interval(units, "nominal", seed=4)
    for count in (2, 3, 5):
        found = alpha_interval([[1.0, 1.0], *[[0.0, 1.0]] * (count - 1)], "nominal")
        assert found is not None and math.isfinite(found.low) and math.isfinite(found.high), "also of few units"
