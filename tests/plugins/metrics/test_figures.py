"""The figures of a data set: counted by hand, on little data, drawn by the seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest

from refed_dspy.plugins.metrics.figures import CachedScorer, Pairs, Tools, figures, table
from refed_dspy.plugins.metrics.perplexity import ScoredText
from tests.support.said import Said

IN_ALL = "in 10,000 words of"
HOSTILE = ["", " \n", "?!", "漢字かな", "nul\0byte", "{0} %s", "x" * 10_000, "🙂"]


COUNTED = {
    "rows": 2,
    "instruction words, mean": 3,
    "instruction words, median": 3,
    "response words, mean": 2.5,
    "response words, 95th percentile": 3.85,
    "distinct-1 of instructions": 4 / 6,
    "distinct-2 of instructions": 3 / 4,
    "distinct-1 of responses": 2 / 5,
    "distinct-2 of responses": 2 / 3,
    "self-ROUGE-L of instructions": 2 * (2 / 2) * (2 / 4) / (2 / 2 + 2 / 4),
}
SCORED = {
    "perplexity of the instruction, mean": 7 / 3,
    "perplexity of the instruction, median": 2,
    "perplexity of the response given it (alpaca), mean": (5 + 3) / 2,
    "IFD (alpaca), mean": (5 / 4 + 3 / 2) / 2,  # what got no answer is left out
    "r-IFD (alpaca), mean": (3 / 2 + 5 / 4 + 2 / 1) / 3,
}
EMBEDDED = {
    "coherence of instruction and response": 2 / 3,
    "semantic diversity of instructions": 2 / 3,
    "distance to the nearest instruction": 1 / 3,
}
"""Figures by hand, of the data in the tests."""


def agree(values: Mapping[str, float | None], expected: Mapping[str, float]) -> bool:
    return {name: values[name] for name in expected} == pytest.approx(expected)


class Lengths:
    """Scores a text by its length; a text with "unknown" in it gets no answer."""

    def __init__(self) -> None:
        self.calls = self.tokens = self.unanswered = 0
        self.asked: list[tuple[str, str]] = []

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        self.asked += zip(contexts, texts, strict=True)
        self.calls += len(texts)
        pairs = zip(contexts, texts, strict=True)
        return [None if "unknown" in text else ScoredText(math.log(len(text) + bool(c)), 1) for c, text in pairs]


class Initials:
    """Embeds a text by its first letter."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str]) -> Any:
        self.seen += texts
        rows = [[1.0, 0.0] if text.startswith("a") else [0.0, 1.0] for text in texts]
        return np.array(rows, np.float32).reshape(-1, 2)


def test_figures_of_a_case_counted_by_hand() -> None:
    values = figures([("one two", "a b a b"), ("one two three four", "a")], Tools())
    assert agree(values, COUNTED) and not values.keys() & {*SCORED, *EMBEDDED}
    pairs = [("aa", "bbbb"), ("cccc", "dd"), ("e", "unknown")]
    assert agree(figures(pairs, Tools(scorer=Lengths(), template="alpaca")), SCORED)
    tools = Tools(embedder=cast(Any, Initials()))
    assert agree(figures([("a1", "a"), ("a2", "b"), ("b1", "b")], tools), EMBEDDED)
    assert set(figures([], tools).values()) == {0, None}
    many = Initials()
    figures([(f"a{n}", "b") for n in range(2_100)], Tools(embedder=cast(Any, many)), sample=10)
    assert len({text for text in many.seen if text != "b"}) == 2_000, "embedding is what costs time"


@pytest.mark.parametrize(
    "pairs",
    [[], [("", "")], [("a", "")], [("one", "two")], [("?", "!"), ("?", "!")], [(x, y) for x in HOSTILE for y in "ab"]],
    ids=["none", "blank", "half", "one row", "no word", "hostile"],
)
def test_figures_of_little_are_numbers_or_nothing(pairs: Pairs) -> None:
    values = figures(pairs, Tools(scorer=Lengths()))
    assert values["rows"] == len(pairs)
    assert all(value is None or math.isfinite(value) for value in values.values())
    lines = table({"data": values})
    assert len(lines) == len(values) + 1 and not [line for line in lines if "nan" in line or "None" in line]
    if not pairs:
        assert {value for name, value in values.items() if name != "rows"} == {None}


def test_what_costs_time_is_drawn_by_the_seed_and_old_and_new_alike() -> None:
    old = [(f"i{n}", f"r{n}") for n in range(40)]
    new = [(f"j{n}", f"s{n}") for n in range(40)]
    drawn = []
    for pairs, seed in ((old, 1), (old, 1), (new, 1), (old, 2)):
        scorer = Lengths()
        figures(pairs, Tools(scorer=scorer), sample=10, seed=seed)
        drawn.append(sorted({text[1:] for _, text in scorer.asked}))
    assert len(drawn[0]) == 10 and drawn[0] == drawn[1] == drawn[2] != drawn[3]


def test_longer_responses_are_compared_at_one_length_too() -> None:
    short = [(f"i{n}", " ".join(f"w{n * 7 % 50 + k}" for k in range(60))) for n in range(200)]
    long = [(instruction, f"{response} {response}") for instruction, response in short]
    whole, alike, none = (
        f"distinct-1 {of}" for of in ("of responses", f"{IN_ALL} responses", f"{IN_ALL} instructions")
    )
    of_short, of_long = (figures(pairs, Tools(), sample=10) for pairs in (short, long))
    assert of_long[whole] == pytest.approx(of_short[whole] / 2)  # type: ignore[operator]
    assert of_long[alike] == pytest.approx(of_short[alike], rel=0.1)
    assert none not in of_short, "there are not so many"


def test_a_text_is_scored_once(said: Said) -> None:
    inner = Lengths()
    scorer = CachedScorer(inner)
    assert scorer.nll(["", "c", ""], ["a", "a", "a"]) == [
        ScoredText(0.0, 1),
        ScoredText(math.log(2), 1),
        ScoredText(0.0, 1),
    ]
    assert scorer.nll(["", "a"], ["a", "c"])[0] == ScoredText(0.0, 1)
    assert sorted(inner.asked) == [("", "a"), ("a", "c"), ("c", "a")]
    assert scorer.nll([""], ["unknown"]) == scorer.nll([""], ["unknown"]) == [None]
    assert inner.asked.count(("", "unknown")) == 2, "what got no answer may get one later"
    assert Tools().scored() == ""
    said(Tools(scorer=scorer).scored())
