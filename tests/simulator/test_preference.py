"""The simulated models of benchmarks/preference.py: only the judge knows the preference, and each does as described."""

from __future__ import annotations

import json
import random
from typing import Any

from dspy.lm15 import Config, Message, Request

from benchmarks.optimization import edited
from benchmarks.preference import (
    ADDED,
    ANSWER_WISHES,
    TASK_WISHES,
    WISHES,
    Preference,
    World,
    current_prompt,
    rewritten,
)
from refed_dspy.programs import ReferenceLevelFeedback
from tests.support.said import Said

TASK = "Do the task."
PREFERENCE = Preference(0)


def ask(world: World, system: str, asked: str, *fields: str, temperature: float = 0.0) -> dict[str, Any]:
    schema = {"type": "json_schema", "schema": {"properties": {name: {} for name in fields}}}
    config = Config(response_format=schema, temperature=temperature)
    response = world.complete(Request(model="sim", system=system, messages=(Message.user(asked),), config=config))
    return dict(json.loads(response.text or ""))


def test_wishes_can_be_told_apart_and_only_references_have_what_the_judge_prefers() -> None:
    assert not ANSWER_WISHES.keys() & TASK_WISHES.keys()
    for texts in ([f"{wish}." for wish in WISHES], [*WISHES.values()]):
        assert not [(a, b) for a in texts for b in texts if a != b and a in b]
    prompts = [predictor.signature.instructions for predictor in ReferenceLevelFeedback().predictors()]
    assert not [wish for wish in WISHES for prompt in prompts if wish in prompt], "the package's own state none"
    for reference in PREFERENCE.references(5):
        assert PREFERENCE.faults(reference["instruction"], of_task=True) == []
        assert PREFERENCE.faults(reference["response"], of_task=False) == []


def test_a_teacher_does_what_its_instructions_ask_for_whatever_it_reads() -> None:
    reference = PREFERENCE.references(1)[0]
    read = f"<example_response>\n{reference['response']}\n</>"
    world = World(PREFERENCE)
    assert not any(mark in ask(world, TASK, read, "response")["response"] for mark in WISHES.values())
    wish = next(iter(ANSWER_WISHES))
    answers = [ask(world, f"{TASK}{ADDED}{wish}.", f"{read} {n}", "response")["response"] for n in range(50)]
    assert 40 <= sum(WISHES[wish] in answer for answer in answers) <= 50


def test_only_the_judge_knows_the_preference() -> None:
    """Two worlds with different preferences write, rewrite and summarize alike."""
    first, second = World(PREFERENCE), World(Preference(1))
    for field in ("response", "new_instructions", "proposed_instruction", "summary"):
        assert ask(first, TASK, "read", field) == ask(second, TASK, "read", field)


def test_the_judge_says_what_is_missing_and_too_much_and_prefers_fewer_faults_in_either_order(said: Said) -> None:
    wanted, *others = PREFERENCE.answers
    needless = next(wish for wish in ANSWER_WISHES if wish not in PREFERENCE.answers)
    text = f"{WISHES[wanted]} a b. {WISHES[needless]} c d."
    verdict = ask(World(PREFERENCE), "Judge.", f"<context>\nIt answers: x\n</>\n<text>\n{text}\n</>", "reason", "grade")
    assert wanted not in verdict["reason"] and all(wish in verdict["reason"] for wish in [needless, *others])
    assert verdict["grade"] == "1"
    said(verdict["reason"])
    good = PREFERENCE.references(1)[0]["response"]
    for a, b, preferred in ((good, "plain", "A>>B"), ("plain", good, "B>>A"), ("plain", "bare", "A=B")):
        asked = f"<answer_a>\n{a}\n</>\n<answer_b>\n{b}\n</>"
        assert ask(World(PREFERENCE), "Judge.", asked, "reason", "verdict")["verdict"] == preferred


def test_the_prompt_to_rewrite_is_found_and_kept() -> None:
    prompt = "First line.\nSecond."
    for asked in (
        f"[[ ## current_instruction ## ]]\n{prompt}\n\n[[ ## examples_with_feedback ## ]]\n[]",
        f"<basic_instruction>\n{prompt}\n</>",
    ):
        assert current_prompt(asked) == prompt
        for field in ("new_instruction", "proposed_instruction"):
            assert ask(World(PREFERENCE), "Judge.", asked, field)[field].startswith(prompt)


def test_a_rewritten_prompt_takes_up_reasons_and_drops_what_was_too_much() -> None:
    missing, needless = list(WISHES)[:2]
    prompt = f"{TASK}{ADDED}{needless}."
    asked = f"<basic_instruction>\n{prompt}\n</> does not {missing} and need not {needless}."
    texts = [rewritten(asked, random.Random(n)) for n in range(100)]
    assert 65 <= sum(missing in text for text in texts) <= 95
    assert 65 <= sum(needless not in text for text in texts) <= 95


def test_the_same_question_again_has_another_answer_above_temperature_0_alone() -> None:
    world = World(PREFERENCE)
    assert ask(world, TASK, "x", "response") == ask(world, TASK, "x", "response")
    hot = [ask(world, TASK, "x", "response", temperature=1.0)["response"] for _ in range(2)]
    assert hot[0] != hot[1] and world.requests == 4


def test_random_edits_leave_the_program_they_start_from_alone() -> None:
    program = ReferenceLevelFeedback()
    before = [predictor.signature.instructions for predictor in program.predictors()]
    after = [p.signature.instructions for p in edited(program, random.Random(0)).predictors()]
    assert before == [predictor.signature.instructions for predictor in program.predictors()] != after
    assert 2 <= sum(text.count(ADDED) for text in after) <= 6
