"""The figures of answers: what is counted, and that a comparison's have no side."""

from __future__ import annotations

import math

import pytest

from refed_dspy.plugins.judge.trained_judge import grading_figures, likeness, pair_figures, text_figures

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


def test_likeness_is_of_words_in_order() -> None:
    assert likeness("The cat sat", "the cat ran") == pytest.approx(2 / 3)
    assert likeness("a b", "b a") == 0.5
    assert (likeness("same", "Same"), likeness("one", "two"), likeness("", "")) == (1.0, 0.0, 1.0)


def test_an_unknown_perplexity_is_no_figure() -> None:
    assert math.isnan(pair_figures((0, 0), "a", "b", 3.0)["log_perplexity"])
    assert math.isnan(grading_figures(4, "a", "b")["log_perplexity"]) and grading_figures(4, "a", "b")["grade"] == 4
    assert [grading_figures(4, "a", "b", nats)["log_perplexity"] for nats in (2.0, 0.0)] == [2, 0]
