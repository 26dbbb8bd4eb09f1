"""The correction of a trained judge: its shares, the exchange of sides, and files that hold no correction."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.plugins.judge import trained_judge
from refed_dspy.plugins.judge.trained_judge import FARTHEST, Correction, Term, read_correction, standardised
from tests.support.said import Said

FIGURES = {"length": 0.0, "preference": 0.0}
STATE: dict[str, Any] = {
    "terms": {"preference": {"mean": 0, "scale": 0.7, "coefficient": 1.3}},
    "thresholds": [-0.4, 0.4],
}


def correction(coefficients: Mapping[str, float], thresholds: tuple[float, ...] = (-0.4, 0.4)) -> Correction:
    terms = {name: Term(mean=0, scale=0.7, coefficient=value) for name, value in coefficients.items()}
    return Correction(terms=terms, thresholds=thresholds)


def test_the_shares_are_those_of_the_formula() -> None:
    low, middle, high = correction({"preference": 1.3}).shares({"preference": 1.4, "length": 9})
    score = 1.3 * 2
    assert high == pytest.approx(1 / (1 + math.exp(0.4 - score)))
    assert low == pytest.approx(1 - 1 / (1 + math.exp(-0.4 - score)))
    assert low + middle + high == pytest.approx(1)


def test_exchanged_answers_have_exactly_exchanged_shares() -> None:
    rng = random.Random(3)
    words = ["one", "two", "three", "-", "four\n-", "five\n#", "six\n**seven**", "eight"]
    for _ in range(500):
        by = correction({name: rng.gauss(0, 2) for name in trained_judge.pair_figures((0, 0), "", "")})
        a, b = (" ".join(rng.choices(words, k=rng.randint(0, 60))) for _ in range(2))
        first, second = rng.randint(-2, 2), rng.randint(-2, 2)
        nats_a, nats_b = rng.uniform(0, 5), rng.uniform(0, 5)
        shares = by.shares(trained_judge.pair_figures((first, second), a, b, nats_a, nats_b))
        turned = by.shares(trained_judge.pair_figures((-second, -first), b, a, nats_b, nats_a))
        assert turned[0] == shares[2] and turned[2] == shares[0]


def test_what_is_far_out_counts_no_more_than_the_farthest() -> None:
    by = correction({"preference": 1.0})
    assert by.shares({"preference": 1e9}) == by.shares({"preference": FARTHEST * 0.7})
    assert standardised(-1e9, 5, 2) == -FARTHEST
    assert correction({"preference": 1e300}).shares({"preference": -1e300}) == pytest.approx((1.0, 0.0, 0.0))


def test_a_figure_that_is_not_known_adds_nothing() -> None:
    term = Term(mean=2.5, scale=0.5, coefficient=-0.8)
    by = Correction(terms={"log_perplexity": term}, thresholds=(-3, -1, 0, 2))
    unknown, usual, likely = (by.shares(trained_judge.grading_figures(3, "a text", "", n)) for n in (None, 2.5, 1.5))
    assert unknown == usual != likely
    pair = correction({"log_perplexity": -0.8}).shares(trained_judge.pair_figures((0, 0), "a", "b", 3.0))
    assert pair[0] == pair[2]


def test_five_levels_rise_with_the_score() -> None:
    by = correction({"grade": 1.0}, (-2, -1, 1, 2))
    means = [sum(k * p for k, p in enumerate(by.shares({"grade": grade}), 1)) for grade in (-2.0, 0.0, 2.0)]
    assert means[0] < means[1] < means[2] and means[1] == pytest.approx(3)
    assert sum(by.shares({"grade": 0.3})) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": None}, "its correction is damaged: terms: "),
        ({"thresholds": []}, "its correction is damaged: thresholds: "),
        ({"thresholds": [0.4, -0.4]}, "damaged: the thresholds do not ascend"),
        (
            {"thresholds": [0.0, float("nan")]},
            "damaged: a threshold is not a finite number",
        ),
        ({"thresholds": [-1, 0, 1]}, "its correction is damaged: 3 thresholds for 3 levels"),
        ({"terms": {"length": {"mean": 0, "scale": 0, "coefficient": 1}}}, "terms.length.scale: "),
        ({"terms": {"length": {"mean": 0, "scale": 1, "coefficient": float("inf")}}}, "terms.length.coefficient: "),
        ({"terms": {"length": {"mean": 0, "scale": 1}}}, "terms.length.coefficient: field required"),
        ({"terms": {"charm": {"mean": 0, "scale": 1, "coefficient": 1}}}, "reads charm, which this version does not"),
        ({"more": 1}, "more: extra inputs"),
    ],
)
def test_a_damaged_correction_is_one_line(said: Said, change: dict[str, Any], message: str) -> None:
    assert read_correction(STATE, 3, FIGURES, "x.json").thresholds == (-0.4, 0.4)
    of_many_kinds: list[Any] = [{**STATE, **change}, None, [], "text"]
    for damaged in of_many_kinds:
        with pytest.raises(ConfigError) as refused:
            read_correction(damaged, 3, FIGURES, "x.json")
        text = str(refused.value)
        said(text)
        assert "\n" not in text and (message in text or damaged in (None, [], "text"))
