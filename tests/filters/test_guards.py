"""Guards: what they drop, what they compare with, and what they tell of a row that they keep."""

from __future__ import annotations

import random
from typing import Any

import pytest

from refed_dspy.config.filters import FilterConfig
from refed_dspy.config.loading import check_config
from refed_dspy.config.run import RunConfig
from refed_dspy.filters.base import Decision
from refed_dspy.filters.build import build
from refed_dspy.filters.guards import (
    COPIES,
    COPIES_SHOWN,
    MISSING,
    REPEATS,
    REPEATS_SHOWN,
    RUN_SHOWN,
    TALK,
    UNCHANGED,
    UNCOMPARED,
    InstructionGuard,
    Known,
    ResponseGuard,
    missing_text,
    prompt_talk,
)
from refed_dspy.records import DataRow, Reference
from tests.filters.example_texts import texts_of

WORDS = [f"word{number}" for number in range(200)]
REFERENCE = Reference(
    instruction="Explain in three sentences why the sky is blue and sunsets are red.", response=" ".join(WORDS)
)


def fresh(count: int) -> str:
    return " ".join(f"fresh{number}" for number in range(count))


def row(response: str, plain: str | None = None, instruction: str = "Explain rain.", **more: Any) -> DataRow:
    return DataRow(1, instruction, response, plain, **{"reference": REFERENCE, **more})


# --- what instructions need, and what texts speak of


def test_instructions_that_need_a_text_which_is_not_there() -> None:
    found = {text: missing_text(text) for text, _ in texts_of("incomplete")}
    assert [text for text, words in found.items() if not words or words not in text.lower()] == []
    assert [text for text, _ in texts_of("complete") if missing_text(text)] == []


@pytest.mark.parametrize(
    "text", ["the following " * 20_000, "which of these " * 20_000, "a, " * 50_000 + "the given list."], ids=len
)
def test_time_grows_with_the_length_alone(text: str) -> None:
    missing_text(text)


def test_texts_that_speak_of_the_prompt_they_were_written_for() -> None:
    said = {text: prompt_talk(text.lower(), "Tell me something about it.") for _, text in texts_of("talk")}
    assert [
        text for text, words in said.items() if not words or words.lower() not in " ".join(text.lower().split())
    ] == []
    assert [text for text, _ in texts_of("talk-instruction") if not prompt_talk(text.lower())] == []
    assert [text for asked, text in texts_of("plain") if prompt_talk(text.lower(), asked)] == []
    assert [text for text, _ in texts_of("plain-instruction") if prompt_talk(text.lower())] == []


# --- instructions


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Explain in three sentences why the sea is blue and sunsets are red.", REPEATS),
        ("Explain in two sentences why the grass is green.", ""),
        ("Explain in the style of the reference response why the sky is blue.", TALK),
        ("Summarize the following article.", MISSING),
    ],
)
def test_an_instruction(instruction: str, reason: str) -> None:
    decision = InstructionGuard().check(row("", instruction=instruction))
    assert (decision.kept, decision.reason, decision.remark) == (not reason, reason, "")
    if reason == REPEATS:
        assert decision.score == 24 / 26 and decision.detail == REFERENCE.instruction


def test_each_check_of_an_instruction_can_be_left_out() -> None:
    texts = {
        "copies": REFERENCE.instruction,
        "prompt_talk": "Describe the reference response.",
        "missing_text": "Summarize the following article.",
    }
    for name, text in texts.items():
        for other in texts:
            assert InstructionGuard(**{other: False}).check(row("", instruction=text)).kept == (name == other)


# --- responses


@pytest.mark.parametrize(
    ("response", "copy"),
    [
        (f"{fresh(150)} {' '.join(WORDS[:25])} {fresh(150)}", True),
        (f"{fresh(150)} {' '.join(WORDS[:24])} {fresh(150)}", False),
        (f"{' '.join(WORDS[:20])} {fresh(28)}", True),  # 13 of 41 runs of 8
        (f"{' '.join(WORDS[:20])} {fresh(31)}", False),
        (f"{' '.join(WORDS[50:65])} {fresh(9)} {' '.join(WORDS[90:102])} {fresh(9)}", True),
        (" ".join(WORDS[7:15]), True),
        (" ".join(WORDS[7:15]).upper().replace(" ", "\n\n"), True),
        (" ".join(WORDS[7:14]), False),
        (" ".join(f"{word} x" for word in WORDS), False),
        ("", False),
    ],
)
def test_a_copy_is_a_long_run_or_many_short_ones(response: str, copy: bool) -> None:
    for start in ("", "a ", "a b "):  # wherever its runs begin
        decision = ResponseGuard().check(row(start + response))
        assert decision.reason == (COPIES if copy else "")
        assert ResponseGuard(copies=False).check(row(start + response)).kept


def test_copies_are_found_wherever_and_however_short_their_runs_are() -> None:
    draw, words = random.Random(0), REFERENCE.response.split()
    runs = {tuple(words[at : at + 8]) for at in range(len(words))}
    kept = 0
    for _ in range(400):
        text: list[str] = []
        while len(text) < draw.choice((10, 28, 30, 60, 200)):
            at = draw.randrange(150)
            text += [*words[at : at + draw.randint(8, 14)], *fresh(draw.randint(1, 12)).split()]
        hits = [tuple(text[at : at + 8]) in runs for at in range(len(text) - 7)]
        copy = sum(hits) > 0.3 * len(hits)
        assert ResponseGuard().check(row(" ".join(text))).kept is not copy
        kept += not copy
    assert 50 < kept < 350


def test_of_a_copy_it_tells_the_share_and_the_first_words() -> None:
    decision = ResponseGuard().check(row(f"{' '.join(WORDS[50:70])} {fresh(20)}"))
    assert decision == Decision(False, COPIES, 13 / 33, " ".join(WORDS[50:58]))


def test_the_plain_response_counts_too() -> None:
    copied, talk = " ".join(WORDS[:30]), "As the feedback suggests, here is more."
    for bad, reason in ((copied, COPIES), (talk, TALK)):
        for at, at_fault in ((row(bad, fresh(30)), False), (row(fresh(30), bad), True), (row(bad, bad), True)):
            assert ResponseGuard().check(at).reason == reason
            assert ResponseGuard().plain_is_bad(at) == at_fault
        assert ResponseGuard().plain_is_bad(row(bad)), "there is no other"
    asked_for = row(talk, instruction="Use this feedback: too short.")
    assert ResponseGuard(prompt_talk=False).check(row(talk)).kept and ResponseGuard().check(asked_for).kept


def test_unchanged_is_told_or_dropped() -> None:
    same = row("It rains.\n", "It rains.")
    assert ResponseGuard().check(same) == Decision(True, remark=UNCHANGED)
    assert ResponseGuard(unchanged="drop").check(same) == Decision(False, UNCHANGED)
    assert not ResponseGuard(unchanged="drop").plain_is_bad(same)
    for other in (row("It rains.", "It rained."), row("It rains.")):
        assert ResponseGuard(unchanged="drop").check(other) == Decision(True)


# --- which reference


def test_without_a_reference_it_is_told_that_nothing_was_compared() -> None:
    lone = row(" ".join(WORDS), reference=None, instruction=REFERENCE.instruction)
    for guard in (InstructionGuard(), ResponseGuard()):
        assert guard.check(lone) == Decision(True, remark=UNCOMPARED)
    for off in (InstructionGuard(copies=False), ResponseGuard(copies=False)):
        assert off.check(lone) == Decision(True)
    both = row("It rains.", "It rains.", reference=None)
    assert ResponseGuard().check(both).remark == f"{UNCHANGED}; {UNCOMPARED}"


def test_a_row_is_compared_with_its_own_reference_or_with_all() -> None:
    others = [Reference(instruction=f"Count to {n} in {fresh(n)}.", response=fresh(40 + n)) for n in range(5)]
    guards = InstructionGuard(references=[*others, REFERENCE]), ResponseGuard(references=[*others, REFERENCE])

    def kept(**more: Any) -> tuple[bool, bool]:
        made = row(" ".join(WORDS[:30]), instruction=REFERENCE.instruction, **more)
        return guards[0].check(made).kept, guards[1].check(made).kept

    assert kept() == kept(reference=None) == kept(reference=None, fields={"reference": REFERENCE.id}) == (False, False)
    assert kept(reference=None, fields={"reference": "unknown"}) == (False, False)
    assert kept(reference=others[3]) == kept(reference=None, fields={"reference": others[3].id}) == (True, True)
    decision = guards[0].check(row("", instruction=f"Count to 3 in {fresh(4)}.", reference=None))
    assert decision.reason == REPEATS and decision.detail == others[3].instruction[:80]


# --- settings


def test_a_runs_guards_are_filters() -> None:
    [first, second] = check_config(RunConfig, {"guards": {"unchanged": "drop", "copies": False}}).guards.filters()  # type: ignore[union-attr]
    assert (first.name, second.name) == ("instruction_guard", "response_guard")
    assert first.settings.copies is second.settings.copies is False and second.settings.unchanged == "drop"
    steps = build([first, second], 0)
    assert steps[1].settings == {"copies": False, "prompt_talk": True, "unchanged": "drop"}
    assert check_config(RunConfig, {}).guards == check_config(RunConfig, {"guards": True}).guards
    assert check_config(RunConfig, {"guards": False}).guards is False
    assert isinstance(FilterConfig.model_validate("response_guard").settings.keep, type(None))


# --- demonstrations


def test_what_the_program_shows_does_not_come_back() -> None:
    shown = Known(["Write a function that turns seconds into hours and minutes."], [fresh(30)])
    instructions, responses = InstructionGuard(), ResponseGuard()
    instructions.demonstrations = responses.demonstrations = shown
    again, other = ("Write a function that turns seconds into minutes.", "Write a function that reverses a list.")
    assert [instructions.check(row("", instruction=text)).reason for text in (again, other)] == [REPEATS_SHOWN, ""]
    assert [responses.check(row(text)).reason for text in (fresh(30), " ".join(WORDS[:20:2]))] == [COPIES_SHOWN, ""]


@pytest.mark.parametrize(("words", "kept"), [(12, False), (11, True)])
@pytest.mark.parametrize("before", range(6))
def test_a_sentence_of_a_demonstration_is_a_copy(words: int, kept: bool, before: int) -> None:
    """It is found wherever it stands, in a text of which it is a small part."""
    guard = ResponseGuard()
    guard.demonstrations = Known(["Q"], [" ".join(f"shown{n}" for n in range(40))], RUN_SHOWN)
    own = [f"own{n}" for n in range(100)]
    sentence = [f"shown{n}" for n in range(9, 9 + words)]
    assert guard.check(row(" ".join([*own[: 40 + before], *sentence, *own[40 + before :]]))).kept == kept
