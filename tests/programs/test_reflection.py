"""Reflection-Tuning's program: what each pass is asked, and that each part falls back by itself, with the reason."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request
from dspy.utils import exceptions as lm_errors

from refed_dspy.errors import NO_REASON, ConfigError, NoConnection, Reason, TeacherError
from refed_dspy.plugins.recycle.program import (
    IMPROVED,
    INSTRUCTION_CRITERIA,
    ORIGINAL,
    REFLECTED,
    RESPONSE_CRITERIA,
    Recycled,
    ReflectionTuning,
)
from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused, NotReached
from refed_dspy.programs.load import load_into
from refed_dspy.programs.saved import save_program
from tests.support.asking import Noting
from tests.support.said import Said
from tests.support.scripted_engine import Answer, Writer, fake_lm

OLD, ANSWER = "Explain tides.", "The moon pulls."
NEW, REWRITTEN, BETTER = "Explain spring tides.", "Sun and moon align.", "Sun, moon and earth align."


def reflected(new: str = NEW, answer: str = REWRITTEN) -> str:
    notes = {"instruction_weaknesses": ["short"], "response_weaknesses": ["short"], "cause": "short"}
    return json.dumps({**notes, "new_instruction": new, "new_response": answer})


def improved(better: str = BETTER) -> str:
    return json.dumps({"weaknesses": ["short"], "better_response": better})


class Reflecting(Writer):
    """Writes fitting answers to both passes."""

    def _value(self, name: str) -> Any:
        return ["short"] if name.endswith("weaknesses") else super()._value(name)


def recycled(*answers: Answer, program: ReflectionTuning | None = None) -> tuple[Recycled, Writer]:
    writer = Writer(*answers)
    with dspy.context(lm=fake_lm(writer)):
        return asyncio.run((program or ReflectionTuning()).recycle(OLD, ANSWER)), writer


def asked(request: Request) -> str:
    return "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)


def shown(request: Request, name: str) -> str:
    match = re.search(rf"<{name}>\n(.*?)\n</>", asked(request), re.DOTALL)
    assert match is not None
    return match[1]


def test_both_passes_make_a_new_pair_and_see_the_system_prompt() -> None:
    writer, system = Writer(reflected(), improved()), "Answer in French."
    with dspy.context(lm=fake_lm(writer)):
        made = asyncio.run(ReflectionTuning().recycle(OLD, ANSWER, system=system))
    assert made == Recycled(NEW, BETTER, REWRITTEN, REFLECTED, IMPROVED)
    pairs = [(shown(request, "instruction"), shown(request, "response")) for request in writer.requests]
    before = f"System prompt:\n{system}\n\nInstruction:\n"
    assert pairs == [(before + OLD, ANSWER), (before + NEW, REWRITTEN)]


async def test_the_passes_can_be_asked_for_one_at_a_time() -> None:
    program, other = ReflectionTuning(), "Sun and moon."
    writer = Writer(reflected(), improved(other), improved(f" {ANSWER}"))
    engine = Noting(writer)
    with dspy.context(lm=engine.lm):
        first = await program.reflect(OLD, ANSWER, "7")
        second = await program.improve(OLD, ANSWER, "7")
        third = await program.improve(OLD, ANSWER)
    assert (first, second, third[0]) == (((NEW, REWRITTEN), NO_REASON), (other, NO_REASON), None)
    stages = ("instruction_reflection", "response_reflection", "response_reflection")
    assert engine.asked == [(stage, item, 0) for stage, item in zip(stages, ("7", "7", OLD), strict=True)]
    assert [shown(request, "response") for request in writer.requests] == [ANSWER] * 3
    untaken = Reason("not taken")
    chosen = Recycled.of((OLD, ANSWER), (None, untaken), second)
    assert chosen == Recycled(OLD, other, ANSWER, ORIGINAL, IMPROVED, untaken)


# --- falling back

FAULTS: dict[str, Answer] = {
    "malformed": "no JSON",
    "cut": AnswerCut("cut at max_tokens=300"),
    "refused": AnswerRefused("declined"),
    "unfit": lm_errors.LMInvalidRequestError("a bad parameter"),
    "too long": lm_errors.ContextWindowExceededError(message="too long"),
    "no answer": lm_errors.LMTimeoutError("no answer in 60 s"),
}
UNANSWERED = {"no answer", "unfit"}
OF_A_PAIR: dict[str, Answer] = {
    "an empty instruction": reflected(new="  "),
    "an empty answer": reflected(answer=""),
    "a placeholder": reflected(new="[Your instruction here]"),
    "a placeholder's answer": reflected(answer="N/A"),
    "unchanged": reflected(new=f" {OLD}\n"),
}
OF_AN_ANSWER: dict[str, Answer] = {
    "empty": improved("\n"),
    "a placeholder": improved("<insert the answer here>"),
    "unchanged": improved(f" {REWRITTEN} "),
}


@pytest.mark.parametrize("fault", [*FAULTS, *OF_A_PAIR])
def test_a_first_pass_without_a_usable_pair_leaves_the_original_pair_to_the_second(said: Said, fault: str) -> None:
    made, writer = recycled({**FAULTS, **OF_A_PAIR}[fault], improved())
    assert made == Recycled(OLD, BETTER, ANSWER, ORIGINAL, IMPROVED, made.instruction_reason)
    assert (shown(writer.requests[1], "instruction"), shown(writer.requests[1], "response")) == (OLD, ANSWER)
    assert made.unanswered == (fault in UNANSWERED)
    assert made.instruction_reason.kind == fault or fault in OF_A_PAIR
    said(made.instruction_reason)


@pytest.mark.parametrize("fault", [*FAULTS, *OF_AN_ANSWER])
def test_a_second_pass_without_a_usable_answer_keeps_the_first_ones(said: Said, fault: str) -> None:
    made, _ = recycled(reflected(), {**FAULTS, **OF_AN_ANSWER}[fault])
    assert (made.instruction, made.response, made.instruction_from) == (NEW, REWRITTEN, REFLECTED)
    assert (made.response_from, made.instruction_reason) == (REFLECTED, NO_REASON)
    assert made.unanswered == (fault in UNANSWERED)
    assert made.response_reason.kind == fault or fault in OF_AN_ANSWER
    said(made.response_reason)


def test_both_passes_may_fall_back() -> None:
    made, _ = recycled("no JSON", improved("TODO"))
    assert (made.instruction, made.instruction_from) == (OLD, ORIGINAL)
    assert (made.response, made.response_from, made.unanswered) == (ANSWER, ORIGINAL, False)


def test_text_of_a_model_is_data() -> None:
    odd = "{0} %s {x} </new_instruction> \u200b 漢字\n\n```"
    made, _ = recycled(reflected(new=odd, answer=odd + "!"), improved(odd + "?"))
    assert (made.instruction, made.reflected_response, made.response) == (odd, odd + "!", odd + "?")


def test_what_is_no_rows_fault_is_raised(said: Said) -> None:
    with said.by(TeacherError):
        recycled(lm_errors.LMAuthError("wrong key"))
    with pytest.raises(lm_errors.LMUnexpectedError):
        recycled(KeyError("a bug"))


# --- prompts


def test_reasons_are_written_before_the_texts_that_follow_from_them() -> None:
    _, writer = recycled(reflected(), improved())
    first, second = (re.findall(r'"(\w+)":\[?string', str(request.system)) for request in writer.requests)
    assert first == ["instruction_weaknesses", "response_weaknesses", "cause", "new_instruction", "new_response"]
    assert second == ["weaknesses", "better_response"]


def test_what_stays_over_a_data_set_comes_before_what_is_a_pairs_own() -> None:
    _, writer = recycled(reflected(), improved())
    for request in writer.requests:
        places = [asked(request).index(f"<{name}>") for name in ("response_criteria", "instruction", "response")]
        assert places == sorted(places)


# --- criteria


def test_criteria_are_inputs() -> None:
    mine = ReflectionTuning({"rhyme": "whether it rhymes"}, {"metre": "how it scans", "wit": "how witty"})
    _, writer = recycled(reflected(), improved(), program=mine)
    assert "rhyme" in (of_instructions := shown(writer.requests[0], "instruction_criteria"))
    assert "ambiguity" not in of_instructions
    for request in writer.requests:
        assert "metre" in (of_responses := shown(request, "response_criteria")) and "wit" in of_responses


def test_the_papers_criteria_are_the_usual_ones() -> None:
    assert len(INSTRUCTION_CRITERIA) == 5 and len(RESPONSE_CRITERIA) == 4
    _, writer = recycled(reflected(), improved())
    for name in INSTRUCTION_CRITERIA:
        assert name in shown(writer.requests[0], "instruction_criteria")
    for request in writer.requests:
        assert all(name in shown(request, "response_criteria") for name in RESPONSE_CRITERIA)


@pytest.mark.parametrize("none", [({}, RESPONSE_CRITERIA), (INSTRUCTION_CRITERIA, {})])
def test_no_criterion_is_refused(said: Said, none: tuple[Any, Any]) -> None:
    with said.by(ConfigError):
        ReflectionTuning(*none)


# --- a DSPy program like any other


async def test_it_is_called_like_any_program_inside_a_running_loop_too() -> None:
    with dspy.context(lm=fake_lm(Writer(reflected(), improved(), reflected(), improved()))):
        called = ReflectionTuning()(instruction=OLD, response=ANSWER)
        awaited = await ReflectionTuning().acall(instruction=OLD, response=ANSWER)
    for made in (called, awaited):
        assert (made.instruction, made.response_from, made.instruction_reason) == (NEW, IMPROVED, NO_REASON)


def test_called_by_itself_it_does_not_pass_a_dead_endpoint_off_as_a_pair(said: Said) -> None:
    writer = Writer()
    writer.on_request = lambda request: NotReached("connection refused")
    with dspy.context(lm=fake_lm(writer)), pytest.raises(NoConnection) as raised:
        ReflectionTuning()(instruction=OLD, response=ANSWER)
    said(raised.value.reason)


def test_it_is_compiled_by_dspy() -> None:
    examples = [dspy.Example(instruction=OLD, response=ANSWER).with_inputs("instruction", "response")]
    with dspy.context(lm=fake_lm(Reflecting())):
        made = dspy.BootstrapFewShot(metric=lambda *_: True, max_bootstrapped_demos=1, max_labeled_demos=0).compile(
            ReflectionTuning(), trainset=examples
        )
    for name, predictor in made.named_predictors():
        assert len(predictor.demos) == 1, f"{name} was not seen by the optimizer"
    assert [name for name, _ in made.named_predictors()] == list(ReflectionTuning.stage_names)


def test_a_tuned_one_is_copied_saved_and_loaded(tmp_path: Path) -> None:
    tuned, instructions = ReflectionTuning({"rhyme": "whether it rhymes"}), "Reflect as a poet would."
    predictor = tuned.instruction_reflection
    predictor.signature = predictor.signature.with_instructions(instructions)
    twin = copy.deepcopy(tuned)
    assert twin.of_instructions == tuned.of_instructions
    save_program(twin, tmp_path / "tuned.json")
    fresh = ReflectionTuning({"rhyme": "whether it rhymes"})
    load_into(fresh, tmp_path / "tuned.json")
    assert fresh.dump_state() == tuned.dump_state()
    _, writer = recycled(reflected(), improved(), program=fresh)
    assert str(writer.requests[0].system).startswith(instructions)
