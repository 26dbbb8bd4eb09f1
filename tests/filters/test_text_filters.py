"""Lengths, refusals, placeholders and languages: what is dropped, and what only looks like it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.filters.language import CODES, Language
from refed_dspy.filters.length import Length
from refed_dspy.filters.refusals import Refusals
from refed_dspy.records import DataRow
from refed_dspy.text import find_placeholder

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


def test_bounds_are_inclusive_and_say_what_they_counted() -> None:
    filter_ = Length(min_words=2, max_words=4, max_characters=20)
    texts = ["one", "one two", " one\u3000two\nthree four ", "1 2 3 4 5", "seventeen characters plus"]
    decisions = [filter_.check(row("", text)) for text in texts]
    assert [(decision.kept, decision.reason, decision.score) for decision in decisions] == [
        (False, "too short", 1), (True, "", 2), (True, "", 4), (False, "too long", 5), (False, "too long", 25),
    ]  # fmt: skip
    assert (
        decisions[0].detail == "1 words, at least 2 asked for"
        and decisions[4].detail == "25 characters, at most 20 asked for"
    )


def test_lengths_of_instructions_and_of_characters() -> None:
    filter_ = Length(min_characters=3, of="instruction")
    assert filter_.check(row("写首诗", "")) == Decision(True, score=3)
    assert filter_.check(row(" ab ", "long enough")).reason == "too short"


# refusals

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


def test_extra_phrases() -> None:
    filter_ = Refusals(extra=["je ne peux pas", "That’s above my pay grade"])
    assert filter_.check(row("x y", "Désolé, JE NE PEUX PAS faire cela.")).detail == "je ne peux pas"
    assert filter_.check(row("x y", "That's above my pay grade, friend.")).reason == "refusal"
    assert filter_.check(row("x y", "Oui. " * 80 + "je ne peux pas")).kept
    with pytest.raises(ConfigError, match="no letter"):
        Refusals(extra=["…"])


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


# languages

GERMAN = "Bitte schreibe mir einen kurzen Text über den Herbst und die fallenden Blätter."
ENGLISH = "Please write a short text for me about autumn and the leaves that fall from the trees."
CHINESE = "请用三句话解释为什么天空是蓝色的，并举一个日常生活中的例子。"


@pytest.fixture(scope="module")
def english() -> Language:
    return Language()


def test_another_language_is_dropped_with_its_code(english: Language) -> None:
    for text, code in ((GERMAN, "de"), (CHINESE, "zh")):
        for mixed in (row(text, ENGLISH), row(ENGLISH, text)):
            decision = english.check(mixed)
            assert (decision.kept, decision.reason, decision.detail) == (False, "language", code)
            assert decision.score is not None and 0.8 <= decision.score <= 1
    assert not english.check(row(ENGLISH, "写一首关于秋天的诗")).kept  # nine letters, which count as twenty-seven
    kept = english.check(row(ENGLISH, ENGLISH))
    assert kept.kept and kept.detail == "en" and kept.score is not None and kept.score > 0.8


def test_what_cannot_be_told_is_kept(english: Language) -> None:
    texts = [
        "Bonjour",
        "Non, merci !",
        "秋天",
        "1234567 + 890",
        "",
        "Pizza, Pasta, Risotto, Spaghetti, Napoli, Roma",
        "for i in range(10):\n    print(x[i] ** 2)",
        "1. Paris\n2. Lyon\n3. Marseille\n4. Nice\n5. Toulouse",
    ]
    assert [text for text in texts if not english.check(row(ENGLISH, text)).kept] == []


def test_code_and_addresses_are_taken_out_first(english: Language) -> None:
    fenced = f"{ENGLISH}\n\n```python\n# {GERMAN}\n{GERMAN * 4}\n```\nThat is all there is to it."
    assert english.check(row(ENGLISH, fenced)).kept
    assert english.check(row(ENGLISH, f"~~~\n{GERMAN * 9}")).score == english.check(row(ENGLISH)).score
    assert english.check(row(ENGLISH, f"`{GERMAN}`")).kept
    assert not english.check(row(ENGLISH, f"```\nx = 1\n```\n{GERMAN}")).kept
    assert not english.check(row(ENGLISH, f"{GERMAN}\n```\nx = 1\n```")).kept


def test_which_texts_and_which_languages(english: Language) -> None:
    mixed = row(ENGLISH, GERMAN)
    settings: list[tuple[dict[str, Any], bool]] = [
        ({"of": "instruction"}, True), ({"of": "response"}, False), ({"allowed": ["de", "en"]}, True),
        ({"allowed": ["de"]}, False), ({"of": "response", "allowed": ["de"]}, True),
    ]  # fmt: skip
    for options, kept in settings:
        filter_ = Language(**options)
        filter_._model = english._model  # a second to load
        assert filter_.check(mixed).kept is kept, options
        assert filter_.of_instruction is (options.get("of") == "instruction")


def test_the_codes_are_those_of_the_model(english: Language) -> None:
    english.check(row(ENGLISH))
    assert {*CODES, "zxx"} == set(english._model.labels)  # zxx: no language
    assert len(CODES) == len(set(CODES))


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        (["english"], "unknown code 'english'; give ISO 639 codes, as en"),
        (["en", "DE"], "unknown code 'DE'; give ISO 639 codes, as de"),
    ],
)
def test_languages_that_make_no_sense(allowed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Language(allowed)
    assert "\n" not in str(caught.value)


def test_random_text_is_never_an_error(english: Language) -> None:
    rng = random.Random(0)
    letters = "abz AZ09[]{}<>()'’\"`~*_-…:.!?\n\t\x00秋ที่éß🍂"
    filters: list[TextFilter] = [Refusals(), english, Length(min_words=3)]
    for _ in range(300):
        text = "".join(rng.choices(letters, k=rng.randint(0, 60)))
        for filter_ in filters:
            decision = filter_.check(row(text, text[::-1]))
            assert decision.kept is (decision.reason == "")
