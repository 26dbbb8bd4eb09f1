"""Refusals and placeholders: what is dropped, and what only looks like it."""

from __future__ import annotations

from pathlib import Path

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.filters.base import Decision
from refed_dspy.filters.refusals import LANGUAGES, Refusals
from refed_dspy.records import DataRow
from refed_dspy.text import find_placeholder
from tests.support.said import Said


def row(instruction: str, response: str = "Here is the answer that you asked for.") -> DataRow:
    return DataRow(1, instruction, response)


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "I am sorry, but I cannot provide medical advice.",
    "Sorry, I can't do that.",
    "I apologize, but I am unable to generate that content.",
    "I apologise for the confusion, but I'm not able to access the internet.",
    "Unfortunately, I cannot browse the web to find current prices.",
    "As an AI language model, I don't have personal opinions.",
    "As a language model, I am not able to feel emotions.",
    "As an AI, I cannot experience the taste of food.",
    "I'm just an AI assistant, so I don't have access to your calendar.",
    "I am an AI developed to help people, and I cannot take sides.",
    "I cannot fulfill your request.",
    "I can't assist with that.",
    "I won't provide instructions for that.",
    "I'm unable to help you with this request.",
    "I do not have access to real-time information.",
    "I don't have enough information to answer.",
    "I must respectfully decline.",
    "This request violates our policies.",
    "That question cannot be answered by me.",
    "It is not appropriate for me to comment on this.",
    "It would be unethical for me to write this.",
    "That would go against my programming.",
    "I don't know.",
    "**I’m sorry, but I can’t help with that.**",
    "My apologies, but I am not able to complete this task.",
]


@pytest.mark.parametrize("response", REFUSALS)
def test_responses_that_decline(response: str) -> None:
    decision = Refusals().check(row("Explain how a clock works.", response))
    assert (decision.kept, decision.reason) == (False, "refusal")
    assert decision.detail and decision.detail in response.lower().replace("’", "'")
    upper = Refusals().check(row("Explain how a clock works.", f"  {response.upper()}\n"))
    assert upper.reason == "refusal"


@pytest.mark.parametrize(
    ("instruction", "response"),
    [
        ("How do I apologise well?", "A good apology says I'm sorry without a but. For example: I'm sorry I was late."),
        ("Write a letter that refuses a job offer.", "Dear Ms Lee,\n\nI'm sorry, but I cannot accept your offer."),
        (
            "Decline this invitation politely.",
            "I'm sorry, but I can't join you on Friday. I can't help with that party.",
        ),
        ("Write an e-mail to a client.", "Unfortunately, I cannot provide the report today; you'll have it tomorrow."),
        ("Write a story about a guard.", "I'm sorry, I can't open the gate, said the guard."),
        ("Translate: Lo siento, no puedo ayudar.", "I'm sorry, I can't help."),
        ("Complete the simile: moth", "I am like a moth to a flame; I can't help but be drawn to her."),
        ("What do you think of this joke?", "I'm sorry, I can't help but laugh at it."),
        ("Comfort a friend.", "I'm sorry to hear that. Is there anything I can do to help?"),
        ("What can science not explain?", "There are many things that science cannot explain, such as consciousness."),
        ("Explain perpetual motion.", "Machines cannot create energy, so unfortunately none of them can run forever."),
        ("Introduce yourself as an AI researcher.", "As an AI researcher, I don't spend much time on hype."),
        ("What do chatbots say?", 'They begin with "As an AI language model, I cannot" and similar phrases.'),
        ("What can an AI do?", "As an AI language model, I can help you to plan, write and learn."),
        ("Give three facts on walls.", "Walls stand. " * 30 + "I'm sorry, but I can't help with that."),
        ("Summarize the novel.", "He says that he is sorry, but they will not provide any help to the village."),
    ],
)
def test_responses_that_only_look_like_it(instruction: str, response: str) -> None:
    assert Refusals().check(row(instruction, response)) == Decision(True)


def test_sure_refusals_count_whatever_was_asked() -> None:
    assert not Refusals().check(row("Write a letter.", "I'm sorry, but I can't help with that request.")).kept
    assert not Refusals().check(row("Decline an offer.", "As an AI language model, I cannot decline offers.")).kept


def test_extra_phrases(said: Said) -> None:
    filter_ = Refusals(extra=["det kan jag inte", "That’s above my pay grade"])
    assert filter_.check(row("x y", "Tyvärr, DET KAN JAG INTE göra.")).detail == "det kan jag inte"
    assert filter_.check(row("x y", "That's above my pay grade, friend.")).reason == "refusal"
    assert filter_.check(row("x y", "Ja. " * 80 + "det kan jag inte")).kept
    with said.by(ConfigError):
        Refusals(extra=["…"])


def texts_of(kind: str) -> list[tuple[str, str]]:
    """The (instruction, response) pairs of a kind in refusal_texts.tsv: "refusal" (27), "answer" (20) in English,
    "refusal de", "answer de", …"""
    lines = Path(__file__).with_name("refusal_texts.tsv").read_text("utf-8").splitlines()
    return [(asked, text) for name, asked, text in (line.split("\t") for line in lines) if name == kind]


def caught(pairs: list[tuple[str, str]]) -> list[str]:
    return [text for asked, text in pairs if Refusals().check(row(asked, text)).reason == "refusal"]


def test_english_refusals_in_many_forms() -> None:
    refusals, answers = texts_of("refusal"), texts_of("answer")
    assert (len(refusals), len(answers)) == (27, 20)
    assert sorted(caught(refusals)) == sorted(text for _, text in refusals)
    assert caught(answers) == []


@pytest.mark.parametrize("code", LANGUAGES)
def test_refusals_in_other_languages(code: str) -> None:
    refusals = texts_of(f"refusal {code}")
    assert refusals and caught(refusals) == [text for _, text in refusals]
    assert caught(texts_of(f"answer {code}")) == []


def test_other_languages_where_a_voice_is_asked_for() -> None:
    sorry = "Es tut mir leid, aber ich kann dir dabei nicht helfen."
    assert caught([("Schreibe eine höfliche Absage.", sorry), ("Write a German dialogue.", sorry)]) == []
    assert caught([("Schreibe eine Absage.", "Als KI-Sprachmodell kann ich keine Absagen schreiben.")])


def test_a_quotation_at_the_beginning_is_not_said() -> None:
    spoken_of = "\"I'm sorry, I can't help with that\" is what most chatbots say."
    assert caught([("What do chatbots say?", spoken_of), ("Who are you?", '"I cannot help you with that."')]) == [
        '"I cannot help you with that."'
    ]


# placeholders

PLACEHOLDERS = [
    "", "  \n", "TODO", "todo.", "TODO: write the answer", "N/A", "n/a.", "TBD", "...", "…", "___",
    "[Your answer here]",
    "[insert name]", "<insert your answer>", "{name}", "{{ instruction }}", "<your name>", "[Name]",
    "[Your Name]\n[Your Address]",
    "(insert text here)", "Lorem ipsum dolor sit amet", "Instruction 1:", "Response:", "**Answer:**",
    "Your answer here",
    "<noinput>", "<nooutput>", "No output", "placeholder", "[Insert response here] Thanks!", "xxx", "Insert text here.",
    "Summarize the following text:", "Classify the sentence below:\n", 'Translate the given sentence into French: ""',
    "[Link to Spotify playlist]",
]  # fmt: skip
TEXTS = [
    "Yes", "no", "7", "+", "?", "C", "None", "[1, 2, 3]", "['USD']", "[0-9]", "{1, 2}", "{x, y}", "{a}", "<html>",
    "<br />", "<p>Hi</p>",
    "Dear Ms Lee,\n\nThank you for the offer.\n\nBest,\n[Your Name]", "def f(x):\n    return {x: [x]}",
    "Dear [Name],\n\nI am writing to you about the position of [Job Title] at [Company].", "printf(\"{name}\")",
    "My to-do list:\n- buy milk", "TODO list of a gardener: dig, sow, water", "The following text is short: hello.",
    "Instruction 1: boil the water. Instruction 2: add the rice.",
    "Here is a list of instructions:\n1. Boil the water.",
    "You can save money by following these simple steps:", "The placeholder text of printers is called lorem ipsum.",
    "(a + b) * c", "(see below)",
    "[Intro]\nWe walk along the river, you and I, and nothing can come between us tonight.",
    "[Insert date]\n\nDear Ms Lee,\n\nThank you for the offer. I am glad to accept it and to start in June.\n\nJo Park",
    "Fill in the blank: The capital of France is ___.",
]  # fmt: skip


@pytest.mark.parametrize("text", PLACEHOLDERS)
def test_texts_that_were_never_filled_in(text: str) -> None:
    match = find_placeholder(text)
    assert match and len(match) <= 80 and "\n" not in match
    decision = Refusals().check(row("Explain how a clock works.", text))
    assert (decision.kept, decision.reason, decision.detail) == (False, "placeholder", match)
    assert Refusals().check(row(text)).reason == "placeholder"


@pytest.mark.parametrize("text", TEXTS)
def test_texts_that_say_something(text: str) -> None:
    assert find_placeholder(text) == ""
    assert Refusals().check(row("Explain how a clock works.", text)).kept


def test_instructions_with_a_slot_inside() -> None:
    check = Refusals().check
    assert check(row("Summarize this: [insert text here]")).detail == "[insert text here]"
    assert check(row("Write an e-mail to <insert name> about the delay.")).reason == "placeholder"
    assert check(row("Write a letter template with [insert name] where the name goes.")).kept
    assert check(row("Which template variable holds the name?", "{name}")).kept
    assert not check(row("Which name has the cat?", "{name}")).kept
    assert check(row("Sort the list [your, favourite, things] in Python.")).kept
