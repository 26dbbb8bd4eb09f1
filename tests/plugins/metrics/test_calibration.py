"""Calibration: scores of probabilities that are known to be right, or wrong."""

from __future__ import annotations

import random

import pytest

from refed_dspy.plugins.judge.training.report import BINS, calibration
from tests.support.said import Said


def drawn(count: int, of: float = 1.0) -> tuple[list[float], list[float]]:
    """Probabilities, and outcomes that come as often as they say; `of`: how far they are drawn from one half."""
    rng = random.Random(5)
    said = [rng.random() for _ in range(count)]
    return said, [float(rng.random() < 0.5 + (p - 0.5) * of) for p in said]


def test_honest_probabilities_have_hardly_an_error() -> None:
    said, outcomes = drawn(1_000)
    made = calibration(said, outcomes, range(1_000))
    assert made.error < 0.04 and made.brier.mean == pytest.approx(1 / 6, abs=0.02)  # the mean of p * (1 - p)
    assert len(made.bins) == BINS
    for each in made.bins:
        assert each.agreed.low - 0.05 <= each.confidence <= each.agreed.high + 0.05


def test_a_judge_that_is_too_sure_has_the_error_that_it_makes() -> None:
    said, outcomes = drawn(1_000, of=0.5)
    made = calibration(said, outcomes, range(1_000))
    assert made.error == pytest.approx(1 / 8, abs=0.04)  # confidence is too high by half its distance from 0.5
    assert all(each.agreed.mean < each.confidence for each in made.bins[5:])


def test_a_comparison_has_no_side() -> None:
    said, outcomes = drawn(200)
    turned = calibration([1 - p for p in said], [1 - o for o in outcomes], range(200))
    made = calibration(said, outcomes, range(200))
    assert turned.error == pytest.approx(made.error) and turned.brier.mean == pytest.approx(made.brier.mean)
    assert [each.confidence for each in turned.bins] == pytest.approx([each.confidence for each in made.bins])


def test_a_tie_is_half_and_a_verdict_is_a_certainty() -> None:
    made = calibration([1.0, 1.0, 0.0, 0.5], [1.0, 0.5, 1.0, 0.5], "abcd")
    assert made.brier.mean == pytest.approx((0 + 0.25 + 1 + 0) / 4)
    half, sure = made.bins
    assert (half.confidence, half.agreed.mean) == (0.5, 0.5) and (sure.confidence, sure.agreed.n) == (1.0, 3)
    assert made.error == pytest.approx(3 / 4 * (1 - (1 + 0.5 + 0) / 3))


def test_shares_stay_between_none_and_all() -> None:
    one = calibration([0.9], [1.0], ["a"])
    assert (one.bins[0].agreed.low, one.bins[0].agreed.high) == (0.0, 1.0)
    assert (one.brier.low, one.brier.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("told", "outcomes"), [([1.2], [1.0]), ([], []), ([0.5], []), ([float("nan")], [0.5])], ids=str
)
def test_what_is_no_probability_is_refused(said: Said, told: list[float], outcomes: list[float]) -> None:
    with said.by(ValueError):
        calibration(told, outcomes, list(range(len(told))))
