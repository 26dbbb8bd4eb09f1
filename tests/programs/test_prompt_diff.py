"""What is different between two programs' prompts, for people."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.reference_level import STAGES
from refed_dspy.programs.saved import SHOWN, changed_predictors, program_state, prompt_diff
from tests.support.said import Said


def state(**instructions: str) -> dict[str, Any]:
    """A program's, where the named stages have other instructions."""
    program = ReferenceLevelFeedback()
    for stage, text in instructions.items():
        predictor = getattr(program, stage)
        predictor.signature = predictor.signature.with_instructions(text)
    return program_state(program)


def with_demos(stage: str, *demos: dict[str, Any]) -> dict[str, Any]:
    program = ReferenceLevelFeedback()
    getattr(program, stage).demos = [dspy.Example(**demo) for demo in demos]
    return program_state(program)


def test_the_same_program_has_no_difference(said: Said) -> None:
    said(prompt_diff(state(), state()))
    assert changed_predictors(state(), state()) == []


def test_instructions_are_compared_line_by_line_under_their_predictor(said: Said) -> None:
    before = state(response_generation="Answer.\nBe kind.\nBe brief.")
    after = state(response_generation="Answer.\nBe bold.\nBe brief.\nEnd.")
    said(prompt_diff(before, after))
    assert changed_predictors(before, after) == ["response_generation"]


def test_only_what_changed_is_shown_in_the_program_s_order(said: Said) -> None:
    after = state(response_improvement="New one.", instruction_feedback="New two.")
    shown = prompt_diff(state(), after)
    assert [line for line in shown.splitlines() if line.startswith("### ")] == [
        "### instruction_feedback",
        "### response_improvement",
    ]
    assert changed_predictors(state(), after) == ["instruction_feedback", "response_improvement"]
    said(shown)


def test_long_instructions_are_shown_around_their_changes(said: Said) -> None:
    lines = [f"Rule {n}." for n in range(40)]
    before, after = "\n".join(lines), "\n".join([*lines[:20], "A new rule.", *lines[20:]])
    shown = prompt_diff(state(response_feedback=before), state(response_feedback=after)).splitlines()
    assert " Rule 19." in shown and " Rule 5." not in shown and len(shown) == 8
    said(shown)


def test_a_demonstration_comes_and_goes_by_itself() -> None:
    old, new = {"instruction": "é {a}", "response": "b"}, {"instruction": "c", "response": "d"}
    before, after = with_demos("response_generation", old), with_demos("response_generation", new)
    shown = prompt_diff(before, after).splitlines()
    assert shown[0] == "### response_generation" and len(shown) == 3
    assert shown[1].startswith("- demonstration: ") and "é {a}" in shown[1]
    assert shown[2].startswith("+ demonstration: ") and '"c"' in shown[2]
    assert changed_predictors(before, after) == ["response_generation"]
    assert prompt_diff(after, with_demos("response_generation", new, old)).count("demonstration") == 1


def test_a_long_demonstration_is_clipped_to_one_line() -> None:
    after = with_demos("response_generation", {"instruction": "x\ny" * 1_000, "response": "b"})
    (line,) = [line for line in prompt_diff(state(), after).splitlines() if "demonstration" in line]
    assert len(line) <= SHOWN + len("+ demonstration: ") and line.isprintable()


def test_the_manifest_is_no_prompt(said: Said) -> None:
    before, after = state(), state()
    after["refed"] = {"fields": {}, "instructions": "other", "made": "today"}
    assert changed_predictors(before, after) == []
    said(prompt_diff(before, after))


def test_a_predictor_that_one_of_them_lacks_is_passed_over(said: Said) -> None:
    before = {name: part for name, part in state().items() if name != STAGES[0]}
    assert STAGES[0] not in prompt_diff(before, state(instruction_feedback="Other."))
    said(prompt_diff({}, state()))


@pytest.mark.parametrize("line", ["-- first", "---", "++ plus"])
def test_lines_that_look_like_a_diff_s_own_are_shown(line: str) -> None:
    before, after = state(response_generation="Answer."), state(response_generation=f"Answer.\n{line}")
    assert f"+{line}" in prompt_diff(before, after).splitlines()
    assert f"-{line}" in prompt_diff(after, before).splitlines()


def test_text_of_any_kind_is_shown_as_it_is() -> None:
    odd = "Use {braces} %s <b>tags</b> `code` 🙂 \\n"
    assert f"+{odd}" in prompt_diff(state(), state(response_feedback=odd))
