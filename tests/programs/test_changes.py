"""What changed between two programs' prompts, and what a program answers stage by stage."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from benchmarks.preference import model
from refed_dspy.optimizers.examples import as_examples
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.changes import (
    LONGEST,
    answers_by_stage,
    changed_predictors,
    fields_text,
    prompt_changes,
    prompt_diff,
)
from refed_dspy.programs.reference_level import STAGES
from refed_dspy.programs.saved import MANIFEST, OUTPUTS, program_state
from tests.programs.test_saved import STAGE
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm
from tests.support.simulated_compiles import QUESTIONS, REFERENCES, Watched, answerer, refed


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


def test_a_demonstration_is_shown_whole_its_inputs_before_its_answer() -> None:
    demo = {"example_instruction": "E", "instruction": "x\ny\n" * 1_000, "response": "b"}
    (change,) = prompt_changes(state(), state(demo))
    (added,) = change.added
    assert ({**added.given, **added.answer}, list(added.answer)) == (demo, ["response"])
    lines = change.lines()
    assert lines.count("+    x") == 1_000 and lines[-2:] == ["+answer:", "+  response: b"]
    assert [line[1:] for line in prompt_changes(state(demo), state())[0].lines()] == [line[1:] for line in lines]


def test_without_a_note_of_outputs_all_fields_are_shown_as_they_are(said: Said) -> None:
    """As of a state that an earlier version wrote, or DSPy itself."""
    after = state({"instruction": "c", "response": ["d", {"e": "f\ng", "h": []}]})
    nothing: dict[str, Any] = {}
    for noted in (nothing, {OUTPUTS: nothing}):
        ((added,),) = (change.added for change in prompt_changes(state(), {**after, MANIFEST: noted}))
        assert not added.given
    said(str(added))


def test_prompts_that_differ_otherwise_are_told_too(said: Said) -> None:
    one, two = {"instruction": "a", "response": "b"}, {"instruction": "c", "response": "d"}
    said(prompt_diff(state(one, two), state(two, one)))
    before, after = state(), state()
    after[STAGE]["signature"]["fields"][-1]["prefix"] = "Now answer:"
    said(prompt_diff(before, after))


def test_a_predictor_that_one_of_them_lacks_is_passed_over(said: Said) -> None:
    before = {name: part for name, part in state().items() if name != STAGES[0]}
    assert STAGES[0] not in prompt_diff(before, state(instruction_feedback="Other."))
    said(prompt_diff({}, state()))


@pytest.mark.parametrize("line", ["-- first", "---", "++ plus", "Use {braces} %s <b>tags</b> `code` 🙂 \\n"])
def test_a_line_of_any_text_is_shown_as_it_is(line: str) -> None:
    before, after = state(response_generation="Answer."), state(response_generation=f"Answer.\n{line}")
    assert f"+{line}" in prompt_diff(before, after).splitlines()
    assert f"-{line}" in prompt_diff(after, before).splitlines()


# --- what a program answers


def test_each_stage_of_a_program_is_answered_once() -> None:
    program, (example, *_) = refed(3), as_examples("references", REFERENCES)
    with dspy.context(lm=model(Watched())):
        answers = answers_by_stage(program, example)
    assert list(answers) == list(STAGES)
    reference = example.reference
    assert reference.instruction in answers["response_feedback"]["given"]
    assert answers["instruction_synthesis"]["answer"].startswith("new_instructions:\n  - ")
    assert reference.response in fields_text(example.inputs())


def test_any_module_is_answered_and_long_texts_say_where_they_were_cut(said: Said) -> None:
    class Twice(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.draft, self.unused = answerer(), answerer()

        async def aforward(self, question: str) -> Any:
            await self.draft.acall(question=f"{question}?")
            return await self.draft.acall(question="w" * 2 * LONGEST)

    with dspy.context(lm=fake_lm(Writer()), adapter=SchemaAdapter()):
        answers = answers_by_stage(Twice(), QUESTIONS[0])
        cut = answers_by_stage(answerer(), dspy.Example(question="w" * 2 * LONGEST).with_inputs("question"))
    said(answers)
    given = cut["predict"]["given"]
    assert LONGEST < len(given) < LONGEST + 50
    said(given[LONGEST:])
