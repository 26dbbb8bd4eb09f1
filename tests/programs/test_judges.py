"""The judges: both orders asked, strengths averaged, and an abstention with its reason where there is no verdict."""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request, Response
from dspy.utils import exceptions as lm_errors

from refed_dspy.errors import ConfigError, NoConnection, Reason, TeacherError
from refed_dspy.programs.judges import (
    INSTRUCTION_CRITERIA,
    OVERALL,
    RESPONSE_CRITERIA,
    SAME,
    Criterion,
    Graded,
    Judgements,
    PairwiseJudge,
    RubricJudge,
    Verdict,
)
from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused, NotReached
from refed_dspy.programs.load import load_into
from refed_dspy.programs.saved import save_program
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.recorded import recorded_lm
from tests.support.asking import Noting
from tests.support.said import Said
from tests.support.scripted_engine import Answer, AsyncWriter, Writer, fake_lm, response

DEPTH = Criterion("depth", "how deep it goes")
TASK, ANSWER, REASON = "Explain tides.", "The moon pulls.", "it lacks an example"


def prompt(request: Request) -> str:
    return "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)


def shown(request: Request, name: str) -> str:
    """The input `name` as the prompt has it."""
    match = re.search(rf"<{name}>\n(.*?)\n</>", prompt(request), re.DOTALL)
    assert match is not None
    return match[1]


def says(verdict: str, reason: str = "it is deeper") -> str:
    return json.dumps({"reason": reason, "verdict": verdict})


def grades(grade: str) -> str:
    return json.dumps({"reason": REASON, "grade": grade})


def answering_by(decide: Callable[[Request], Answer | None]) -> Writer:
    writer = Writer()
    writer.on_request = decide
    return writer


def by_order(usual: Answer, exchanged: Answer) -> Writer:
    """Answers `usual` where "first" is answer A, and `exchanged` where it is answer B."""
    return answering_by(lambda request: usual if shown(request, "answer_a") == "first" else exchanged)


def verdict_of(writer: Writer, a: str = "first", b: str = "second", **more: Any) -> Verdict:
    with dspy.context(lm=fake_lm(writer)):
        return asyncio.run(PairwiseJudge().judge(TASK, a, b, **more))


def grade_of(writer: Writer, criterion: Criterion = DEPTH) -> Graded:
    with dspy.context(lm=fake_lm(writer)):
        return asyncio.run(RubricJudge().judge(ANSWER, TASK, criterion))


# --- two answers


def test_both_orders_are_asked() -> None:
    writer = by_order(says("A>B", "more depth"), says("B>A", "less depth"))
    verdict = verdict_of(writer)
    orders = {(shown(request, "answer_a"), shown(request, "answer_b")) for request in writer.requests}
    assert orders == {("first", "second"), ("second", "first")}
    assert len(writer.requests) == 2
    reasons = ("more depth", "(asked with A and B exchanged) less depth")
    assert verdict == Verdict(1, True, reasons, in_orders=(1, 1))


@pytest.mark.parametrize(
    ("usual", "exchanged", "preference", "win"),
    [
        ("A>>B", "B>>A", 2, 1),
        ("A>B", "B>>A", 1.5, 1),
        ("A>B", "B>A", 1, 1),
        ("A=B", "A=B", 0, 0.5),
        ("B>A", "A>>B", -1.5, 0),
        ("B>>A", "A>>B", -2, 0),
    ],
)
def test_the_preference_is_the_mean_of_both_orders(usual: str, exchanged: str, preference: float, win: float) -> None:
    verdict = verdict_of(by_order(says(usual), says(exchanged)))
    assert (verdict.preference, verdict.consistent, verdict.win) == (preference, True, win)


@pytest.mark.parametrize(
    ("usual", "exchanged"),
    [("A>B", "A>B"), ("A>>B", "A>B"), ("B>>A", "B>A"), ("A>>B", "A=B"), ("A=B", "A>B"), ("A=B", "B>>A")],
)
def test_orders_that_disagree_make_a_tie(usual: str, exchanged: str) -> None:
    verdict = verdict_of(by_order(says(usual), says(exchanged)))
    assert (verdict.preference, verdict.consistent, verdict.win, verdict.abstained) == (0, False, 0.5, "")
    assert len(verdict.reasons) == 2


def test_an_empty_answer_is_judged_and_the_same_answers_cost_no_call() -> None:
    assert verdict_of(by_order(says("A>>B"), says("B>>A")), "first", "").preference == 2
    writer = Writer()
    assert verdict_of(writer, "  one\n", "one") is SAME
    assert verdict_of(writer, "", "") is SAME
    assert (SAME.preference, SAME.consistent, SAME.win) == (0, True, 0.5)
    assert writer.requests == []


@pytest.mark.parametrize("criterion", [DEPTH, OVERALL, *INSTRUCTION_CRITERIA.values(), *RESPONSE_CRITERIA.values()])
def test_what_it_is_judged_by_reaches_the_prompt(criterion: Criterion) -> None:
    writer = answering_by(lambda request: says("A=B"))
    verdict_of(writer, criterion=criterion)
    for request in writer.requests:
        asked = [shown(request, name) for name in ("criterion", "description", "instruction")]
        assert asked == [criterion.name, criterion.description, TASK]


async def test_the_judges_calls_are_made_for_its_stage_and_what_it_judges() -> None:
    engine = Noting(answering_by(lambda request: says("A=B")))
    with dspy.context(lm=engine.lm):
        await PairwiseJudge().judge(TASK, "first", "second")
        await PairwiseJudge().judge(TASK, "first", "second", item="4")
    assert engine.asked == [("pairwise_judge", item, 0) for item in (TASK, TASK, "4", "4")]


# --- no verdict: an abstention, and why

FAULTS: list[tuple[Answer, str]] = [
    ("What a pair!", "malformed"),
    ('{"reason": "it is dee', "malformed"),
    (says("A"), "malformed"),
    (says("A>B", " "), "malformed"),
    (AnswerCut("cut at max_tokens=300"), "cut"),
    (AnswerRefused("declined"), "refused"),
    (response(" ", "content_filter"), "malformed"),
    (lm_errors.ContextWindowExceededError(message="too long"), "too long"),
    (lm_errors.LMInvalidRequestError("bad request"), "unfit"),
    (lm_errors.LMTimeoutError("no answer in 600 s"), "no answer"),
    (lm_errors.LMServerError("500"), "no answer"),
]


def test_what_a_judge_decided_abstained_and_failed_on_is_counted_apart(said: Said) -> None:
    cut = Reason("cut", "so")
    abstained, failed = Verdict(None, None, (), "the judge could not tell"), Verdict(None, None, (), failed=cut)
    grades = [Graded("depth", 3, "deep"), Graded("depth", None, "unclear"), Graded("depth", None, "x", failed=cut)]
    counted = Judgements.of([Verdict(0, True, ()), abstained, failed, *grades])
    assert counted == Judgements(2, 2, 2, cut) and counted.asked == 6
    said([counted.warning(), str(Judgements(2, 1, 1))])
    assert [Judgements(*counts).warning() for counts in ((2, 1, 1), (0, 0, 0))] == ["", ""]


@pytest.mark.parametrize(("fault", "why"), FAULTS)
@pytest.mark.parametrize("first", [True, False])
def test_a_call_that_fails_is_no_abstention_and_has_its_reason(fault: Answer, why: str, first: bool) -> None:
    verdict = verdict_of(by_order(fault, says("B>A")) if first else by_order(says("A>B"), fault))
    assert (verdict.preference, verdict.consistent, verdict.win) == (None, None, None)
    assert verdict.failed.kind == why and not verdict.abstained and "\n" not in verdict.failed


@pytest.mark.parametrize(
    ("usual", "exchanged"), [("cannot tell", "A>B"), ("A>B", "cannot tell"), ("cannot tell", "cannot tell")]
)
def test_a_judge_that_cannot_tell_abstains_and_keeps_its_reasons(said: Said, usual: str, exchanged: str) -> None:
    verdict = verdict_of(by_order(says(usual), says(exchanged)))
    assert (verdict.preference, verdict.consistent, len(verdict.reasons)) == (None, None, 2)
    said(verdict.abstained)


# --- one text


@pytest.mark.parametrize(("grade", "share"), [("1", 0), ("2", 0.25), ("3", 0.5), ("4", 0.75), ("5", 1)])
def test_a_grade_is_one_to_five(grade: str, share: float) -> None:
    writer = answering_by(lambda request: grades(grade))
    graded = grade_of(writer)
    assert graded == Graded("depth", int(grade), REASON) and graded.share == share
    (request,) = writer.requests
    asked = [shown(request, name) for name in ("criterion", "description", "context", "text")]
    assert asked == [DEPTH.name, DEPTH.description, TASK, ANSWER]


NO_GRADES: list[tuple[Answer, str]] = [
    *((grades(grade), "malformed") for grade in ("0", "6", "3.5", "5/5", "")),
    (AnswerCut("cut at max_tokens=300"), "cut"),
    (grades("cannot tell"), ""),
]


@pytest.mark.parametrize(("answer", "why"), NO_GRADES)
def test_no_grade_is_an_abstention_with_its_reason(answer: Answer, why: str) -> None:
    graded = grade_of(answering_by(lambda request: answer))
    assert (graded.grade, graded.share, graded.failed.kind) == (None, None, why)
    assert graded.reason == (graded.failed or REASON)


# --- no judge


@pytest.mark.parametrize(
    ("fault", "raised"),
    [(NotReached("connection refused"), NoConnection), (lm_errors.LMAuthError("wrong key"), TeacherError)],
    ids=["not reached", "wrong key"],
)
@pytest.mark.parametrize("ask", [verdict_of, grade_of])
def test_a_judge_that_cannot_be_asked_raises(
    said: Said, fault: Exception, raised: type[Exception], ask: Callable[[Writer], object]
) -> None:
    with said.by(raised):
        ask(answering_by(lambda request: fault))


def test_a_bug_is_raised_as_it_is() -> None:
    with pytest.raises(lm_errors.LMUnexpectedError):
        verdict_of(Writer(KeyError("a bug"), KeyError("a bug")))


def test_without_a_language_model_it_says_so(said: Said) -> None:
    with dspy.context(lm=None), said.by(ConfigError):
        asyncio.run(PairwiseJudge().judge("i", "a", "b"))


async def test_an_order_that_raises_leaves_no_other_behind(said: Said) -> None:
    ends: list[str] = []
    under_way = asyncio.Event()

    class Engine(AsyncWriter):
        async def complete(self, request: Request) -> Any:
            if shown(request, "answer_a") == "first":
                await under_way.wait()
                raise lm_errors.LMAuthError("the key is refused")
            under_way.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise
            raise AssertionError("it was left to run")

    writer = Writer()
    lm = dspy.LM("fake/model", engine=writer, async_engine=Engine(writer), num_retries=0, cache=False)
    with dspy.context(lm=lm), said.by(TeacherError):
        await PairwiseJudge().judge("i", "first", "second")
    assert ends == ["cancelled"]


# --- DSPy programs like any other


async def test_they_are_called_like_any_program_inside_a_running_loop_too() -> None:
    writer = by_order(says("A>B"), says("B>A"))
    inputs = {"instruction": "i", "answer_a": "first", "answer_b": "second"}
    with dspy.context(lm=fake_lm(writer)):
        made = PairwiseJudge()(**inputs, criterion=DEPTH.name, description=DEPTH.description)
        assert (made.preference, made.consistent, made.abstained, len(made.reasons)) == (1, True, "", 2)
        assert (await PairwiseJudge().acall(**inputs)).preference == 1
    assert [shown(request, "criterion") for request in writer.requests] == ["depth"] * 2 + [OVERALL.name] * 2
    with dspy.context(lm=fake_lm(answering_by(lambda request: grades("4")))):
        graded = RubricJudge()(text="t", context="c", criterion="depth", description="d")
    assert (graded.grade, graded.reason) == (4, REASON)


def test_a_copy_is_another_program() -> None:
    judge, other = PairwiseJudge(), "Toss a coin."
    twin = copy.deepcopy(judge)
    twin.compare.signature = twin.compare.signature.with_instructions(other)
    assert judge.compare.signature.instructions != other
    writer = by_order(says("A>B"), says("B>A"))
    with dspy.context(lm=fake_lm(writer)):
        assert asyncio.run(twin.judge("i", "first", "second")).preference == 1
    assert all(other in str(request.system) for request in writer.requests)


@pytest.mark.parametrize(("kind", "name"), [(PairwiseJudge, "compare"), (RubricJudge, "grade")])
def test_a_tuned_judge_is_saved_and_loaded(said: Said, tmp_path: Path, kind: Any, name: str) -> None:
    judge, fresh, instructions = kind(), kind(), "Judge as a poet would."
    tuned = getattr(judge, name)
    tuned.signature = tuned.signature.with_instructions(instructions)
    tuned.demos = [dspy.Example(criterion="depth", reason="it rhymes", verdict="A>B", grade="5")]
    save_program(judge, tmp_path / "judge.json")
    load_into(fresh, tmp_path / "judge.json")
    loaded = getattr(fresh, name)
    assert loaded.signature.instructions == instructions
    assert [dict(demo) for demo in loaded.demos] == [dict(demo) for demo in tuned.demos]
    assert fresh.dump_state() == judge.dump_state()
    with said.by(ConfigError):
        load_into(RubricJudge() if kind is PairwiseJudge else PairwiseJudge(), tmp_path / "judge.json")


async def test_a_judge_s_trace_is_in_one_order_whichever_call_ended_first() -> None:
    """A judge that is compiled is asked in both orders at once, and demonstrations are drawn from its trace."""
    traces = []
    for slow in ("first", "second"):

        class Answers:
            def __init__(self, slow: str) -> None:
                self.slow = slow

            async def complete(self, request: Request) -> Response:
                text = prompt(request)
                await asyncio.sleep(0.03 if (text.index("one") < text.index("two")) == (self.slow == "first") else 0)
                return response(json.dumps({"reason": "r", "verdict": "A=B"}))

        with dspy.context(lm=recorded_lm(open_teacher(fake_lm(Writer())), Answers(slow)), trace=[]):
            await PairwiseJudge().acall(instruction="i", answer_a="one", answer_b="two")
            traces.append([step[1]["answer_a"] for step in dspy.settings.trace])
    assert traces[0] == traces[1] and len(traces[0]) == 2
