"""Filters of one text: lengths, languages, and what all of them have in common."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.config.loading import check_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError
from refed_dspy.filters.base import Decision
from refed_dspy.filters.language import CODES, SURELY_NOT, Language
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


@pytest.fixture(scope="module")
def english() -> Language:
    """Half a second to load."""
    return Language()


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


# --- languages


def row(instruction: str, response: str = "Here is the answer that you asked for.") -> DataRow:
    return DataRow(1, instruction, response)


GERMAN = "Bitte schreibe mir einen kurzen Text über den Herbst und die fallenden Blätter."
ENGLISH = "Please write a short text for me about autumn and the leaves that fall from the trees."
CHINESE = "请用三句话解释为什么天空是蓝色的，并举一个日常生活中的例子。"


def test_another_language_is_dropped_with_its_code(english: Language) -> None:
    for text, code in ((GERMAN, "de"), (CHINESE, "zh")):
        for mixed in (row(text, ENGLISH), row(ENGLISH, text)):
            decision = english.check(mixed)
            assert (decision.kept, decision.reason, decision.detail) == (False, "language", code)
            assert decision.score is not None and 0 <= decision.score < SURELY_NOT
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
        "Afghanistan, Armenia, Azerbaijan, Kazakhstan, Kyrgyzstan, Tajikistan, Turkmenistan, Uzbekistan",
        "Madrid, Barcelona, Valencia, Sevilla, Zaragoza, Málaga",
        "Johann Sebastian Bach, Ludwig van Beethoven, Wolfgang Amadeus Mozart",
    ]
    assert [text for text in texts if not english.check(row(ENGLISH, text)).kept] == []


def test_code_and_addresses_are_taken_out_first(english: Language) -> None:
    fenced = f"{ENGLISH}\n\n```python\n# {GERMAN}\n{GERMAN * 4}\n```\nThat is all there is to it."
    assert english.check(row(ENGLISH, fenced)).kept
    assert english.check(row(ENGLISH, f"~~~\n{GERMAN * 9}")).score == english.check(row(ENGLISH)).score
    assert english.check(row(ENGLISH, f"`{GERMAN}`")).kept
    assert not english.check(row(ENGLISH, f"```\nx = 1\n```\n{GERMAN}")).kept
    assert not english.check(row(ENGLISH, f"{GERMAN}\n```\nx = 1\n```")).kept


def test_no_foreign_sentence_passes(english: Language) -> None:
    lines = Path(__file__).with_name("foreign_sentences.tsv").read_text("utf-8").splitlines()
    sentences = [line.split("\t") for line in lines]
    assert len(sentences) >= 42 and {"bg", "ru", "zh"} < {code for code, _ in sentences}
    assert [text for _, text in sentences if english.check(row(ENGLISH, text)).kept] == []
    assert [text for _, text in sentences if english.check(row(text, ENGLISH)).kept] == []


@pytest.mark.slow
def test_a_language_that_is_allowed_may_be_taken_for_its_neighbour() -> None:
    norwegian, serbian = "Skriv en kort fortelling om en dag på høsten.", "Napiši kratku priču o jednom danu u jesen."
    for allowed, text in (("no", norwegian), ("da", norwegian), ("sr", serbian), ("bs", serbian)):
        assert Language([allowed], of="response").check(row(ENGLISH, text)).kept


@pytest.mark.parametrize("marks", ['""', "“”", "„“", "«»", "''", "‘’", "「」"])
def test_quotations_are_passed_over(english: Language, marks: str) -> None:
    quoted = f"{marks[0]}{GERMAN}{marks[1]}"
    texts = [f"Translate the sentence {quoted} into English.", quoted, f'{GERMAN} "{ENGLISH}"']
    assert [english.check(row(text)).kept for text in texts] == [True, False, False]


@pytest.mark.parametrize("break_", [": ", ":\n", "\n\n"])
def test_an_instruction_is_in_the_language_of_its_task(english: Language, break_: str) -> None:
    texts = [
        f"Translate the following into English{break_}{GERMAN * 3}",
        f"Übersetze das Folgende bitte ins Englische{break_}{ENGLISH * 3}",
        f"Aufgabe: {GERMAN}",
    ]
    assert [english.check(row(text)).kept for text in texts] == [True, False, False]
    response = f"Here is what you asked for:\n{GERMAN * 3}"
    assert not english.check(row(ENGLISH, response)).kept


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


# --- settings

NOT_FINITE = [math.nan, math.inf]
REFUSED: list[tuple[str, list[dict[str, Any]]]] = [
    ("length", [{}, {"min_words": -1}, {"max_characters": -5}, {"min_words": 9, "max_words": 8}]),
    ("length", [{"min_words": 9, "of": "both"}]),
    ("language", [{"allowed": []}, {"of": "all"}]),
    ("near_duplicates", [{"threshold": 0}, {"threshold": 1.1}, {"of": "x"}]),
    ("overlap", [{"against": "b.txt", "n": 1}, {"against": "b.txt", "of": "response"}]),
    ("rouge", [{"threshold": value} for value in (0, -0.1, 1.01, *NOT_FINITE)]),
    ("response_guard", [{"references": "x.jsonl"}]),
]


@pytest.mark.parametrize(("name", "settings"), [(name, each) for name, group in REFUSED for each in group])
def test_settings_that_make_no_sense(said: Said, name: str, settings: dict[str, Any]) -> None:
    with said.by(ConfigError) as refused:
        check_config(RunConfig, {"filters": [{name: settings}]})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("guards", [{"unchnged": "drop"}, {"unchanged": "maybe"}, "drop"])
def test_guards_that_make_no_sense(said: Said, guards: Any) -> None:
    with said.by(ConfigError) as refused:
        check_config(RunConfig, {"guards": guards})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("code", ["english", "DE"])
def test_languages_that_make_no_sense(said: Said, code: str) -> None:
    with said.by(ConfigError):
        Language(["en", code])
