"""Which instructions need a text that is not there."""

from __future__ import annotations

import pytest

from refed_dspy.filters.guards import missing_text
from tests.filters.missing_texts import MISSING, NOT_MISSING


@pytest.mark.parametrize("instruction", MISSING)
def test_a_text_is_missing(instruction: str) -> None:
    words = missing_text(instruction)
    assert words and words in instruction.lower()


@pytest.mark.parametrize("instruction", NOT_MISSING)
def test_nothing_is_missing(instruction: str) -> None:
    assert missing_text(instruction) == ""


@pytest.mark.parametrize(
    "text", ["the following " * 20_000, "which of these " * 20_000, "a, " * 50_000 + "the given list."]
)
def test_time_grows_with_the_length_alone(text: str) -> None:
    missing_text(text)
