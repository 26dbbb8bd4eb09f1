"""Fitting: planted coefficients are found, shares are weights, and neither side is preferred."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from refed_dspy.plugins.judge.trained_judge import Correction
from refed_dspy.plugins.judge.training.learn import Example, fit_grades, fit_pairs


def levels(score: float, thresholds: tuple[float, ...], rng: random.Random) -> tuple[float, ...]:
    """A level drawn from the model, as shares."""
    above = rng.random()
    drawn = sum(above < 1 / (1 + math.exp(threshold - score)) for threshold in thresholds)
    return tuple(float(level == drawn) for level in range(len(thresholds) + 1))


def planted(count: int, thresholds: tuple[float, ...], seed: int = 0) -> list[Example]:
    """Examples whose level depends on `good` and `long`, and not on `noise`; `still` never changes."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        figures = {"good": rng.gauss(0, 1), "long": rng.gauss(0, 2), "noise": rng.gauss(0, 1), "still": 0.0}
        score = 1.5 * figures["good"] - 0.5 * figures["long"]
        made.append(Example(figures, levels(score, thresholds, rng), str(number // 2)))
    return made


def slopes(correction: Correction) -> dict[str, float]:
    return {name: term.coefficient / term.scale for name, term in correction.terms.items()}


def test_planted_coefficients_of_pairs_are_found() -> None:
    fitted = fit_pairs(planted(1_500, (-0.5, 0.5)))
    found = slopes(fitted)
    assert found["good"] == pytest.approx(1.5, abs=0.2) and found["long"] == pytest.approx(-0.5, abs=0.1)
    assert abs(found["noise"]) < 0.15 and "still" not in found
    assert fitted.thresholds == (-fitted.thresholds[1], fitted.thresholds[1])
    assert fitted.thresholds[1] == pytest.approx(0.5, abs=0.15)
    assert all(term.mean == 0 for term in fitted.terms.values())


def test_planted_thresholds_of_grades_are_found_also_where_some_figures_are_not_known() -> None:
    """What is not known in an example is learned from the others."""
    rng, examples = random.Random(3), []
    for each in planted(3_000, THRESHOLDS):
        figures = {name: value + 7 for name, value in each.figures.items()}
        if rng.random() < 0.3:
            figures["noise"] = math.nan
        examples.append(replace(each, figures={**figures, "unknown": math.nan}))
    fitted = fit_grades(examples)
    assert slopes(fitted)["good"] == pytest.approx(1.5, abs=0.15) and abs(slopes(fitted)["noise"]) < 0.1
    assert fitted.terms["good"].mean == pytest.approx(7, abs=0.1)
    assert fitted.thresholds == pytest.approx(THRESHOLDS, abs=0.25)
    assert (fitted.terms["noise"].mean, fitted.terms["noise"].scale) == pytest.approx((7, 1), abs=0.1)
    assert "unknown" not in fitted.terms
    of_pairs = fit_pairs([replace(each, shares=each.shares[:3]) for each in examples[:300]])
    assert "noise" in of_pairs.terms and "unknown" not in of_pairs.terms


def test_verdicts_that_are_all_of_one_side_prefer_no_side() -> None:
    examples = [Example(each.figures, (0, 0, 1), each.instruction) for each in planted(100, (-0.5, 0.5))]
    fitted = fit_pairs(examples)
    b_better, _, a_better = fitted.shares(dict.fromkeys(fitted.terms, 0.0))
    assert a_better == b_better
    turned = fit_pairs([each.exchanged() for each in examples])
    assert turned.thresholds == pytest.approx(fitted.thresholds, rel=1e-4), "whichever answer is named first"


def test_shares_of_people_are_weights() -> None:
    split = [Example({"good": 1.0 if n % 2 else -1.0}, (0.25, 0.0, 0.75), str(n)) for n in range(400)]
    told = [Example({"good": 1.0}, (0.25, 0.0, 0.75), str(n)) for n in range(400)]
    assert slopes(fit_pairs(split)).get("good", 0) == pytest.approx(0, abs=0.05)  # both signs, the same shares
    a_better = fit_pairs([*told, *(each.exchanged() for each in told)]).shares({"good": 1.0})[2]
    assert a_better == pytest.approx(0.75, abs=0.03)


def test_a_few_examples_of_nothing_are_penalised_to_nearly_nothing() -> None:
    """The weakest penalty would find coefficients of 0.3 and more in half of such data."""
    rng = random.Random(1)
    largest = []
    for seed in range(4):
        examples = planted(30, (-0.5, 0.5), seed)
        shuffled = rng.sample(examples, len(examples))
        anew = [Example(a.figures, b.shares, a.instruction) for a, b in zip(examples, shuffled, strict=True)]
        largest.append(max(abs(term.coefficient) for term in fit_pairs(anew).terms.values()))
    assert sorted(largest)[2] < 0.1


def test_grades_that_nobody_gave_leave_thresholds_in_order() -> None:
    examples = [
        Example(each.figures, (0, 0, each.shares[0], 0, each.shares[1] + each.shares[2]), each.instruction)
        for each in planted(200, (-0.5, 0.5))
    ]
    fitted = fit_grades(examples)
    assert list(fitted.thresholds) == sorted(fitted.thresholds)
    shares = fitted.shares({name: term.mean for name, term in fitted.terms.items()})
    assert shares[2] + shares[4] > 0.9


def test_a_fit_is_the_same_each_time() -> None:
    assert fit_pairs(planted(30, (-0.5, 0.5))) == fit_pairs(planted(30, (-0.5, 0.5)))


THRESHOLDS = (-2.0, -1.0, 0.5, 2.0)
