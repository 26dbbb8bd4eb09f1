"""Lengths, and what all filters of one text have in common."""

from __future__ import annotations

import random

from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.filters.language import Language
from refed_dspy.filters.length import Length
from refed_dspy.filters.refusals import Refusals
from refed_dspy.records import DataRow
from tests.support.said import Said

HOSTILE = [
    "",
    " \n\t",
    "?!…",
    "\x00",
    "a\nb",
    "x" * 100_000,
    "`" * 50_000,
    "[" * 50_000,
    "I can't " * 10_000,
    "天" * 9_999,
]


def row(instruction: str, response: str = "Here is the answer that you asked for.") -> DataRow:
    return DataRow(1, instruction, response)


def test_every_filter_takes_any_text_and_says_whether_it_needs_the_response() -> None:
    filters: list[TextFilter] = [Length(min_words=1), Refusals(), Language(), Length(max_words=3, of="instruction")]
    assert [(filter_.name, filter_.of_instruction) for filter_ in filters] == [
        ("length", False), ("refusals", False), ("language", False), ("length", True),
    ]  # fmt: skip
    for filter_ in filters:
        for text in HOSTILE:
            for decision in (
                filter_.check(row(text)),
                filter_.check(row("Say something", text)),
                filter_.check(row(text, text)),
            ):
                assert (
                    decision.kept is (decision.reason == "")
                    and "\n" not in decision.detail
                    and len(decision.detail) <= 120
                )
        filter_.remember(row("anything"))


# lengths


def test_bounds_are_inclusive_and_say_what_they_counted(said: Said) -> None:
    filter_ = Length(min_words=2, max_words=4, max_characters=20)
    texts = ["one", "one two", " one\u3000two\nthree four ", "1 2 3 4 5", "seventeen characters plus"]
    decisions = [filter_.check(row("", text)) for text in texts]
    said([(decision.kept, decision.reason, decision.score) for decision in decisions])  # fmt: skip
    said(decisions[0].detail)
    said(decisions[4].detail)


def test_lengths_of_instructions_and_of_characters() -> None:
    filter_ = Length(min_characters=3, of="instruction")
    assert filter_.check(row("写首诗", "")) == Decision(True, score=3)
    assert filter_.check(row(" ab ", "long enough")).reason == "too short"


def test_random_text_is_never_an_error() -> None:
    rng = random.Random(0)
    letters = "abz AZ09[]{}<>()'’\"`~*_-…:.!?\n\t\x00秋ที่éß🍂"
    filters: list[TextFilter] = [Refusals(), Language(), Length(min_words=3)]
    for _ in range(300):
        text = "".join(rng.choices(letters, k=rng.randint(0, 60)))
        for filter_ in filters:
            decision = filter_.check(row(text, text[::-1]))
            assert decision.kept is (decision.reason == "")
