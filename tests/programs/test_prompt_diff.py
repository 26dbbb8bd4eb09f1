"""What is different between two programs' prompts, for people."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.reference_level import STAGES
from refed_dspy.programs.saved import SHOWN, changed_predictors, program_state, prompt_diff
from tests.support.said import Said

STAGE = "response_generation"


def state(*demos: dict[str, Any], **instructions: str) -> dict[str, Any]:
    """A program's, where the named stages have other instructions, and the generation has demonstrations."""
    program = ReferenceLevelFeedback()
    for stage, text in instructions.items():
        predictor = getattr(program, stage)
        predictor.signature = predictor.signature.with_instructions(text)
    program.response_generation.demos = [dspy.Example(**demo) for demo in demos]
    return program_state(program)


LINES = [f"Rule {n}." for n in range(40)]
DIFFERENCES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "none": (state(), state(), []),
    "the manifest": (state(), {**state(), "refed": {"instructions": "other", "made": "today"}}, []),
    "lines": (
        state(response_generation="Answer.\nBe kind.\nBe brief."),
        state(response_generation="Answer.\nBe bold.\nBe brief.\nEnd."),
        [STAGE],
    ),
    "two predictors, in the program's order": (
        state(),
        state(response_improvement="New one.", instruction_feedback="New two."),
        ["instruction_feedback", "response_improvement"],
    ),
    "a line of many": (
        state(response_feedback="\n".join(LINES)),
        state(response_feedback="\n".join([*LINES[:20], "A new rule.", *LINES[20:]])),
        ["response_feedback"],
    ),
    "a demonstration": (
        state({"instruction": "é {a}", "response": "b"}),
        state({"instruction": "c", "response": "d"}),
        [STAGE],
    ),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_only_what_changed_is_shown_under_its_predictor(said: Said, difference: str) -> None:
    before, after, changed = DIFFERENCES[difference]
    assert changed_predictors(before, after) == changed
    said(prompt_diff(before, after))


def test_a_demonstration_comes_by_itself_and_is_clipped_to_one_line() -> None:
    old = {"instruction": "a", "response": "b"}
    after = state({"instruction": "x\ny" * 1_000, "response": "b"}, old)
    (line,) = [line for line in prompt_diff(state(old), after).splitlines() if "demonstration" in line]
    assert len(line) <= SHOWN + len("+ demonstration: ") and line.isprintable()


def test_a_predictor_that_one_of_them_lacks_is_passed_over(said: Said) -> None:
    before = {name: part for name, part in state().items() if name != STAGES[0]}
    assert STAGES[0] not in prompt_diff(before, state(instruction_feedback="Other."))
    said(prompt_diff({}, state()))


@pytest.mark.parametrize("line", ["-- first", "---", "++ plus", "Use {braces} %s <b>tags</b> `code` 🙂 \\n"])
def test_a_line_of_any_text_is_shown_as_it_is(line: str) -> None:
    before, after = state(response_generation="Answer."), state(response_generation=f"Answer.\n{line}")
    assert f"+{line}" in prompt_diff(before, after).splitlines()
    assert f"-{line}" in prompt_diff(after, before).splitlines()
