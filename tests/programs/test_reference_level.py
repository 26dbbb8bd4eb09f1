"""Reference-Level Feedback as a DSPy module: what it asks, what it gives, and what becomes of failures."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request
from dspy.utils import exceptions as lm_errors

from refed_dspy.errors import ConfigError, MalformedAnswer, TeacherError
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused
from refed_dspy.programs.reference_level import STAGES
from refed_dspy.records import TAKEN_SHOWN, Feedback, Reference, Sample
from tests.support.asking import Noting
from tests.support.scripted_engine import SAMPLE_FIELDS, Answer, AsyncWriter, Writer, fake_lm

REFERENCE = Reference(instruction="Explain tides.", response="The moon pulls.", source="tides.jsonl row 4")
AS_DICT = {"instruction": REFERENCE.instruction, "response": REFERENCE.response}
STAGE_OF = {
    "subject_areas": "instruction_feedback",
    "response_feedback": "response_feedback",
    "new_instructions": "instruction_synthesis",
    "response": "response_generation",
    "analysis": "response_improvement",
}


def stage_of(writer: Writer, request: Request) -> str:
    return STAGE_OF[writer.fields(request)[0]]


def asked(writer: Writer) -> Counter[str]:
    """How many calls each stage made."""
    return Counter(stage_of(writer, request) for request in writer.requests)


def prompt(request: Request) -> str:
    return "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)


def called(program: dspy.Module, writer: Writer, reference: Any = REFERENCE) -> dspy.Prediction:
    with dspy.context(lm=fake_lm(writer)):
        return program(reference)


def answering_once(stage: str, answer: Answer, writer: Writer) -> Writer:
    """`writer`, but its first answer to `stage` is `answer`."""
    remaining = [answer]

    def answer_of(request: Request) -> Answer | None:
        return remaining.pop() if remaining and stage_of(writer, request) == stage else None

    writer.on_request = answer_of
    return writer


def run_with(writer: Writer, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    with dspy.context(lm=fake_lm(writer)):
        return asyncio.run(work())


# --- one reference, all of its samples


@pytest.mark.parametrize(
    "reference",
    [REFERENCE, AS_DICT, dspy.Example(**AS_DICT, id=4)],
    ids=["Reference", "dict", "Example"],
)
def test_one_reference_gives_its_samples_with_two_calls_each(reference: Any) -> None:
    writer = Writer()
    made = called(ReferenceLevelFeedback(), writer, reference)
    assert isinstance(made.feedback, Feedback)
    assert set(made.feedback.features) == {"subject_areas", "relevant_skills"}
    assert all(isinstance(sample, Sample) for sample in made.samples) and made.failures == []
    assert len({sample.instruction for sample in made.samples}) == 20
    assert asked(writer) == dict(zip(STAGES, (1, 1, 2, 20, 20), strict=True))


def test_each_stage_is_shown_what_the_paper_gives_it_and_answers_the_samples_fields() -> None:
    writer = Writer(per_call=1)
    program = ReferenceLevelFeedback({"subject_areas": "its field"}, instructions_per_feature=1)
    made = called(program, writer)
    shown = {stage_of(writer, request): prompt(request) for request in writer.requests}
    sample, feedback = made.samples[0], made.feedback
    for stage in STAGES[:2]:
        assert REFERENCE.instruction in shown[stage] and REFERENCE.response in shown[stage]
    assert feedback.features["subject_areas"] in shown["instruction_synthesis"]
    assert "<how_many>\n1\n" in shown["instruction_synthesis"]
    assert REFERENCE.response in shown["response_generation"] and sample.instruction in shown["response_generation"]
    for text in (feedback.response, sample.instruction, sample.response):
        assert text in shown["response_improvement"]
    assert sample.analysis.model_dump() == SAMPLE_FIELDS["analysis"]
    assert sample.implementation_strategy.model_dump() == SAMPLE_FIELDS["implementation_strategy"]
    assert sample.response.startswith("response ") and sample.improved_response.startswith("improved_response ")


@pytest.mark.parametrize(
    "reference",
    [
        None,
        5,
        "Explain tides.",
        {"instruction": "Q"},
        {"instruction": "", "response": "A"},
        {"instruction": 5, "response": "A"},
        {"instruction": "\ud800", "response": "A"},
        dspy.Example(response="A"),
    ],
    ids=ascii,
)
def test_anything_else_is_refused_before_any_call(reference: Any) -> None:
    writer = Writer()
    with pytest.raises(ConfigError, match="instruction"):
        called(ReferenceLevelFeedback(), writer, reference)
    assert writer.requests == []


def test_without_a_language_model_it_says_how_to_set_one() -> None:
    with dspy.context(lm=None), pytest.raises(ConfigError, match=r"dspy\.configure"):
        ReferenceLevelFeedback()(REFERENCE)


# --- ways to call it: forward, aforward, a running loop, Evaluate


async def test_it_is_called_where_a_loop_is_running_and_awaited() -> None:
    assert len(called(program := ReferenceLevelFeedback(), Writer(per_call=1)).samples) == 2
    with dspy.context(lm=fake_lm(Writer(per_call=1))):
        assert len((await program.acall(REFERENCE)).samples) == 2


def test_evaluate_calls_it_from_several_threads() -> None:
    devset = [
        dspy.Example(reference=Reference(instruction=f"Explain {i}.", response="It is.")).with_inputs("reference")
        for i in range(6)
    ]
    evaluate = dspy.Evaluate(
        devset=devset,
        metric=lambda example, made, trace=None: len(made.samples) / 2,
        num_threads=3,
        display_progress=False,
    )
    with dspy.context(lm=fake_lm(Writer(per_call=1))):
        assert evaluate(ReferenceLevelFeedback()).score == 100


def test_a_predictors_own_language_model_is_asked_instead() -> None:
    program, of_predictor, of_context = ReferenceLevelFeedback(), Writer(), Writer(per_call=1)
    program.response_generation.lm = fake_lm(of_predictor)
    called(program, of_context)
    assert asked(of_predictor) == {"response_generation": 2}
    assert "response_generation" not in asked(of_context)


def test_the_callers_adapter_is_used_where_one_is_set() -> None:
    text = "Keep the tone."
    writer = Writer(f"[[ ## response_feedback ## ]]\n{text}\n\n[[ ## completed ## ]]")
    with dspy.context(adapter=dspy.ChatAdapter()):
        assert run_with(writer, lambda: ReferenceLevelFeedback().collect_response_feedback(REFERENCE)) == text


@pytest.mark.parametrize("watched", [False, True], ids=["direct", "usual"])
async def test_a_recorded_model_learns_stage_item_and_repetition(watched: bool) -> None:
    engine, program = Noting(Writer()), ReferenceLevelFeedback()
    with dspy.context(lm=engine.lm, disable_history=not watched, track_usage=False):
        await program.propose(REFERENCE, "relevant_skills", "reasoning", repetition=3)
        await program.respond(REFERENCE, "Be kind.", "Do it.", item="17")
    assert engine.asked == [
        ("instruction_synthesis", f"{REFERENCE.id}/relevant_skills", 3),
        ("response_generation", "17", 0),
        ("response_improvement", "17", 0),
    ]


# --- what is proposed


@pytest.mark.parametrize(
    ("written", "taken", "surplus"),
    [
        (["One.", "Two.", "Three.", "Four."], ("One.", "Two."), 2),
        (["", " One. ", "\n", "Two."], ("One.", "Two."), 0),
        (["One."], ("One.",), 0),
        ([], (), 0),
    ],
    ids=["more", "blank ones", "fewer", "none"],
)
def test_as_many_instructions_as_asked_for_are_taken_and_others_counted(
    written: list[str], taken: tuple[str, ...], surplus: int
) -> None:
    program = ReferenceLevelFeedback(instructions_per_feature=2)
    writer = Writer(json.dumps({"new_instructions": written}))
    proposal = run_with(writer, lambda: program.propose(REFERENCE, "subject_areas", "tides"))
    assert (proposal.instructions, proposal.surplus) == (taken, surplus)


def test_an_instruction_that_two_features_propose_is_answered_once() -> None:
    writer = Writer(repeat=True)
    assert len(called(ReferenceLevelFeedback(), writer).samples) == 10
    assert asked(writer)["response_generation"] == 10


def test_the_newest_of_those_taken_are_shown() -> None:
    taken = [f"Taken {i}." for i in range(TAKEN_SHOWN + 2)]
    writer = Writer()
    run_with(writer, lambda: ReferenceLevelFeedback().propose(REFERENCE, "subject_areas", "tides", taken))
    shown = [line for line in prompt(writer.requests[0]).splitlines() if line.startswith("- Taken")]
    assert shown == [f"- {text}" for text in taken[2:]]


# --- failures


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("not JSON", "malformed"),
        ('{"response_feedback": 5, "new_instructions": 5, "response": 5, "subject_areas": 5}', "malformed"),
        (AnswerCut("cut"), "cut"),
        (AnswerRefused("declined"), "refused"),
        (lm_errors.ContextWindowExceededError(message="too long"), "too long"),
        (lm_errors.LMInvalidRequestError("bad request"), "unfit"),
        (lm_errors.LMTimeoutError("late"), "no answer"),
        (lm_errors.LMRateLimitError("429"), "no answer"),
        (lm_errors.LMServerError("500"), "no answer"),
        (lm_errors.LMTransportError("reset"), "no answer"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_failed_answer_costs_one_sample_and_is_told_by_kind(error: Answer, kind: str) -> None:
    made = called(ReferenceLevelFeedback(), answering_once("response_generation", error, Writer()))
    (failure,) = made.failures
    assert (failure.stage, failure.kind) == ("response_generation", kind)
    assert failure.item.startswith(f"{REFERENCE.id}/Task ")
    assert failure.reason.isprintable()
    assert len(made.samples) == 19


@pytest.mark.parametrize(
    ("stage", "samples", "feedback"),
    [
        ("instruction_feedback", 0, False),
        ("response_feedback", 0, False),
        ("instruction_synthesis", 10, True),
        ("response_generation", 19, True),
        ("response_improvement", 19, True),
    ],
)
def test_a_failure_costs_what_depends_on_it_and_no_more(stage: str, samples: int, feedback: bool) -> None:
    made = called(ReferenceLevelFeedback(), answering_once(stage, AnswerCut("cut"), Writer()))
    assert [failure.stage for failure in made.failures] == [stage]
    assert len(made.samples) == samples
    assert (made.feedback is not None) == feedback


def test_the_reason_of_a_malformed_answer_is_short_and_leaves_the_answer_out() -> None:
    answer = "I would rather tell a story. " * 50
    with pytest.raises(MalformedAnswer) as caught:
        run_with(Writer(answer), lambda: ReferenceLevelFeedback().collect_response_feedback(REFERENCE))
    assert "story" not in str(caught.value) and len(caught.value.reason) < 200


AUTH = lm_errors.LMAuthError("401")


@pytest.mark.parametrize(
    ("stage", "error"),
    [
        *((stage, AUTH) for stage in STAGES),
        (STAGES[0], lm_errors.LMBillingError("402")),
        (STAGES[0], lm_errors.LMUnsupportedModelError("404")),
        (STAGES[0], lm_errors.LMUnsupportedFeatureError("no schema")),
        (STAGES[0], lm_errors.LMConfigurationError("odd")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
async def test_a_teacher_that_cannot_go_on_stops_it_in_any_stage(stage: str, error: Exception) -> None:
    with pytest.raises(TeacherError) as caught:
        called(ReferenceLevelFeedback(), answering_once(stage, error, Writer(per_call=1)))
    assert str(caught.value).isprintable() and stage in str(caught.value)


def test_a_bug_is_no_failed_row() -> None:
    with pytest.raises(lm_errors.LMUnexpectedError):
        called(ReferenceLevelFeedback(), Writer(ZeroDivisionError("a bug")))


class SlowWriter(AsyncWriter):
    """Takes a moment, so that calls are under way at the same time."""

    async def complete(self, request: Request) -> Any:
        await asyncio.sleep(0.005)
        return await super().complete(request)


async def test_nothing_more_is_paid_for_once_the_teacher_cannot_go_on() -> None:
    writer = answering_once("response_generation", lm_errors.LMAuthError("401"), Writer())
    lm = dspy.LM("fake/model", engine=writer, async_engine=SlowWriter(writer), num_retries=0, cache=False)
    with dspy.context(lm=lm), pytest.raises(TeacherError):
        await ReferenceLevelFeedback().acall(REFERENCE)
    calls = len(writer.requests)
    await asyncio.sleep(0.1)
    assert len(writer.requests) == calls
