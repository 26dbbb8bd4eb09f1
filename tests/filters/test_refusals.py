"""Refusals and placeholders: what is dropped, and what only looks like it."""

from __future__ import annotations

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.filters.refusals import LANGUAGES, Refusals
from refed_dspy.records import DataRow
from refed_dspy.text import find_placeholder
from tests.filters.example_texts import texts_of
from tests.support.said import Said


def row(instruction: str, response: str = "Here is the answer that you asked for.") -> DataRow:
    return DataRow(1, instruction, response)


def test_extra_phrases(said: Said) -> None:
    phrase = "det kan jag inte"
    filter_ = Refusals(extra=[phrase, "That’s above my pay grade"])
    decisions = [
        filter_.check(row("x y", text))
        for text in (f"Tyvärr, {phrase.upper()} göra.", "That's above my pay grade, friend.", "Ja. " * 80 + phrase)
    ]
    assert decisions[0].detail == phrase
    assert [decision.kept for decision in decisions] == [False, False, True]
    with said.by(ConfigError):
        Refusals(extra=["…"])


def caught(pairs: list[tuple[str, str]]) -> list[str]:
    decisions = [(text, Refusals().check(row(asked, text))) for asked, text in pairs]
    assert all((decision.reason == "refusal") == bool(decision.detail) for _, decision in decisions)
    assert all(decision.detail in text.lower().replace("’", "'") for text, decision in decisions)
    return [text for text, decision in decisions if not decision.kept]


@pytest.mark.parametrize("language", ["", *(f" {code}" for code in LANGUAGES)])
def test_responses_that_decline_and_those_that_only_look_so(language: str) -> None:
    refusals = texts_of(f"refusal{language}")
    assert refusals and caught(refusals) == [text for _, text in refusals]
    assert caught(texts_of(f"answer{language}")) == []


def test_a_refusal_may_be_shouted_between_blanks() -> None:
    shouted = [(asked, f"  {text.upper()}\n") for asked, text in texts_of("refusal")]
    assert caught(shouted) == [text for _, text in shouted]


@pytest.mark.parametrize(
    ("asked", "response"),
    [
        ("Write a letter.", "I'm sorry, but I can't help with that request."),
        ("Decline an offer.", "As an AI language model, I cannot decline offers."),
        ("Schreibe eine Absage.", "Als KI-Sprachmodell kann ich keine Absagen schreiben."),
        ("Who are you?", '"I cannot help you with that."'),
    ],
)
def test_sure_refusals_count_whatever_was_asked(asked: str, response: str) -> None:
    assert caught([(asked, response)]) == [response]


@pytest.mark.parametrize(
    ("asked", "response"),
    [
        ("Schreibe eine höfliche Absage.", "Es tut mir leid, aber ich kann dir dabei nicht helfen."),
        ("Write a German dialogue.", "Es tut mir leid, aber ich kann dir dabei nicht helfen."),
        ("What do chatbots say?", "\"I'm sorry, I can't help with that\" is what most chatbots say."),
    ],
)
def test_what_a_voice_or_a_quotation_says_is_no_refusal(asked: str, response: str) -> None:
    assert caught([(asked, response)]) == []


# placeholders

CLOCK = "Explain how a clock works."


@pytest.mark.parametrize("text", [text for _, text in texts_of("placeholder")])
def test_texts_that_were_never_filled_in(text: str) -> None:
    match = find_placeholder(text)
    assert match and len(match) <= 80 and "\n" not in match
    decision = Refusals().check(row(CLOCK, text))
    assert (decision.kept, decision.reason, decision.detail) == (False, "placeholder", match)
    assert Refusals().check(row(text)).reason == "placeholder"


@pytest.mark.parametrize("text", [text for _, text in texts_of("no placeholder")])
def test_texts_that_say_something(text: str) -> None:
    assert find_placeholder(text) == "" and Refusals().check(row(CLOCK, text)).kept


@pytest.mark.parametrize(
    ("asked", "response", "kept"),
    [
        ("Summarize this: [insert text here]", "A.", False),
        ("Write an e-mail to <insert name> about the delay.", "A.", False),
        ("Which name has the cat?", "{name}", False),
        ("Write a letter template with [insert name] where the name goes.", "A.", True),
        ("Which template variable holds the name?", "{name}", True),
        ("Sort the list [your, favourite, things] in Python.", "A.", True),
    ],
)
def test_instructions_with_a_slot_inside(asked: str, response: str, kept: bool) -> None:
    decision = Refusals().check(row(asked, response))
    assert (decision.kept, decision.detail in asked + response) == (kept, True)
