"""The correction of a trained judge: its shares, the figures that it reads, and files that hold no correction."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.plugins.judge.trained_judge import (
    FARTHEST,
    Correction,
    Term,
    grading_figures,
    likeness,
    pair_figures,
    read_correction,
    standardised,
    text_figures,
)
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
        by = correction({name: rng.gauss(0, 2) for name in pair_figures((0, 0), "", "")})
        a, b = (" ".join(rng.choices(words, k=rng.randint(0, 60))) for _ in range(2))
        first, second = rng.randint(-2, 2), rng.randint(-2, 2)
        nats_a, nats_b = rng.uniform(0, 5), rng.uniform(0, 5)
        shares = by.shares(pair_figures((first, second), a, b, nats_a, nats_b))
        turned = by.shares(pair_figures((-second, -first), b, a, nats_b, nats_a))
        assert turned[0] == shares[2] and turned[2] == shares[0]


def test_what_is_far_out_counts_no_more_than_the_farthest() -> None:
    by = correction({"preference": 1.0})
    assert by.shares({"preference": 1e9}) == by.shares({"preference": FARTHEST * 0.7})
    assert standardised(-1e9, 5, 2) == -FARTHEST
    assert correction({"preference": 1e300}).shares({"preference": -1e300}) == pytest.approx((1.0, 0.0, 0.0))


def test_a_figure_that_is_not_known_adds_nothing() -> None:
    term = Term(mean=2.5, scale=0.5, coefficient=-0.8)
    by = Correction(terms={"log_perplexity": term}, thresholds=(-3, -1, 0, 2))
    unknown, usual, likely = (by.shares(grading_figures(3, "a text", "", n)) for n in (None, 2.5, 1.5))
    assert unknown == usual != likely
    pair = correction({"log_perplexity": -0.8}).shares(pair_figures((0, 0), "a", "b", 3.0))
    assert pair[0] == pair[2]


def test_five_levels_rise_with_the_score() -> None:
    by = correction({"grade": 1.0}, (-2, -1, 1, 2))
    means = [sum(k * p for k, p in enumerate(by.shares({"grade": grade}), 1)) for grade in (-2.0, 0.0, 2.0)]
    assert means[0] < means[1] < means[2] and means[1] == pytest.approx(3)
    assert sum(by.shares({"grade": 0.3})) == pytest.approx(1)


DAMAGED: list[Any] = [
    None,
    [],
    "text",
    {**STATE, "terms": None},
    *({**STATE, "thresholds": each} for each in ([], [0.4, -0.4], [0.0, math.nan], [-1, 0, 1])),
    {**STATE, "terms": {"length": {"mean": 0, "scale": 0, "coefficient": 1}}},
    {**STATE, "terms": {"length": {"mean": 0, "scale": 1, "coefficient": math.inf}}},
    {**STATE, "terms": {"length": {"mean": 0, "scale": 1}}},
    {**STATE, "terms": {"charm": {"mean": 0, "scale": 1, "coefficient": 1}}},
    {**STATE, "more": 1},
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_correction_is_one_line(said: Said, damaged: Any) -> None:
    assert read_correction(STATE, 3, FIGURES, "x.json").thresholds == (-0.4, 0.4)
    with said.by(ConfigError) as refused:
        read_correction(damaged, 3, FIGURES, "x.json")
    assert "\n" not in str(refused.value)


# --- the figures that it reads

MARKDOWN = """# Title

1. one
2) two
- three
  * four
• five
Some **bold** and __bold__ words, 3 - 2 = 1.
####### no heading
#no heading
"""


def test_marks_of_markdown_are_counted() -> None:
    counts = {name: round(math.expm1(value)) for name, value in text_figures(MARKDOWN).items()}
    assert counts == {"length": len(MARKDOWN), "list_items": 5, "headings": 1, "bold": 2}
    assert not any(text_figures("").values())


def test_exchanging_the_answers_turns_every_sign() -> None:
    figures = pair_figures((2, -1), MARKDOWN, "Short.", 2.5, 4.0)
    assert pair_figures((1, -2), "Short.", MARKDOWN, 4.0, 2.5) == {name: -value for name, value in figures.items()}
    assert all(figures[name] > 0 for name in ("length", "longer", "list_items", "headings", "bold", "markdown"))
    assert (figures["preference"], figures["winner"], figures["log_perplexity"]) == (0.5, 0.0, -1.5)


def test_the_preference_counts_apart_where_the_orders_disagree() -> None:
    agreed, torn = pair_figures((2, 1), "a b", "a c"), pair_figures((2, -1), "a b", "a c")
    assert (agreed["preference"], agreed["preference_where_orders_disagree"]) == (1.5, 0.0)
    assert (torn["preference"], torn["preference_where_orders_disagree"]) == (0.5, 0.5)
    assert agreed["preference_by_likeness"] == pytest.approx(1.5 * likeness("a b", "a c"))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [("The cat sat", "the cat ran", 2 / 3), ("a b", "b a", 0.5), ("same", "Same", 1), ("one", "two", 0), ("", "", 1)],
)
def test_likeness_is_of_words_in_order(one: str, other: str, alike: float) -> None:
    assert likeness(one, other) == pytest.approx(alike)


def test_an_unknown_perplexity_is_no_figure() -> None:
    assert math.isnan(pair_figures((0, 0), "a", "b", 3.0)["log_perplexity"])
    assert math.isnan(grading_figures(4, "a", "b")["log_perplexity"]) and grading_figures(4, "a", "b")["grade"] == 4
    assert [grading_figures(4, "a", "b", nats)["log_perplexity"] for nats in (2.0, 0.0)] == [2, 0]
