"""Lengths, and what all filters of one text have in common."""

from __future__ import annotations

import random

from refed_dspy.filters.base import Decision
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
LETTERS = "abz AZ09[]{}<>()'’\"`~*_-…:.!?\n\t\x00秋ที่éß🍂"


def row(instruction: str, response: str = "Here is the answer that you asked for.") -> DataRow:
    return DataRow(1, instruction, response)


def test_a_filter_takes_any_text_and_says_whether_it_needs_the_response(english: Language) -> None:
    draw = random.Random(0)
    texts = [*HOSTILE, *("".join(draw.choices(LETTERS, k=draw.randint(0, 60))) for _ in range(40))]
    for filter_, name, of_instruction in (
        (Length(min_words=1), "length", False),
        (Length(max_words=3, of="instruction"), "length", True),
        (Refusals(), "refusals", False),
        (english, "language", False),
    ):
        assert (filter_.name, filter_.of_instruction) == (name, of_instruction)
        for text in texts:
            for each in (row(text), row("Say something", text), row(text, text[::-1])):
                decision = filter_.check(each)
                assert decision.kept is (decision.reason == "")
                assert "\n" not in decision.detail and len(decision.detail) <= 120
        filter_.remember(row("anything"))


# lengths


def test_bounds_are_inclusive_and_say_what_they_counted(said: Said) -> None:
    filter_ = Length(min_words=2, max_words=4, max_characters=20)
    texts = ["one", "one two", " one\u3000two\nthree four ", "1 2 3 4 5", "seventeen characters plus"]
    decisions = [filter_.check(row("", text)) for text in texts]
    assert [decision.kept for decision in decisions] == [False, True, True, False, False]
    said([(decision.reason, decision.score, decision.detail) for decision in decisions])


def test_lengths_of_instructions_and_of_characters() -> None:
    filter_ = Length(min_characters=3, of="instruction")
    assert filter_.check(row("写首诗", "")) == Decision(True, score=3)
    assert filter_.check(row(" ab ", "enough")).reason
