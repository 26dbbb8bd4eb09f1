"""Which texts speak of the prompt they were written for."""

from __future__ import annotations

import pytest

from refed_dspy.filters.guards import prompt_talk
from tests.filters.prompt_talk_texts import (
    PLAIN_INSTRUCTIONS,
    PLAIN_RESPONSES,
    TALK_OF_INSTRUCTIONS,
    TALK_OF_RESPONSES,
)


@pytest.mark.parametrize("text", TALK_OF_RESPONSES)
def test_responses_that_speak_of_their_prompt(text: str) -> None:
    words = prompt_talk(text.lower(), "Tell me something about it.")
    assert words and words.lower() in " ".join(text.lower().split())


@pytest.mark.parametrize("text", TALK_OF_INSTRUCTIONS)
def test_instructions_that_speak_of_their_prompt(text: str) -> None:
    assert prompt_talk(text.lower())


@pytest.mark.parametrize(("instruction", "text"), PLAIN_RESPONSES)
def test_responses_that_only_look_so(instruction: str, text: str) -> None:
    assert prompt_talk(text.lower(), instruction) == ""


@pytest.mark.parametrize("text", PLAIN_INSTRUCTIONS)
def test_instructions_that_only_look_so(text: str) -> None:
    assert prompt_talk(text.lower()) == ""
