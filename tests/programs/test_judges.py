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
from refed_dspy.programs.adapter import SchemaAdapter
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
    return json.dumps({"reason": "it lacks an example", "grade": grade})


def answering_by(decide: Callable[[Request], Answer | None]) -> Writer:
    writer = Writer()
    writer.on_request = decide
    return writer


def by_order(usual: Answer, exchanged: Answer) -> Writer:
    """Answers `usual` where "first" is answer A, and `exchanged` where it is answer B."""
    return answering_by(lambda request: usual if shown(request, "answer_a") == "first" else exchanged)


def verdict_of(writer: Writer, a: str = "first", b: str = "second", **more: Any) -> Verdict:
    with dspy.context(lm=fake_lm(writer)):
        return asyncio.run(PairwiseJudge().judge("Explain tides.", a, b, **more))


def grade_of(writer: Writer, criterion: Criterion = DEPTH) -> Graded:
    with dspy.context(lm=fake_lm(writer)):
        return asyncio.run(RubricJudge().judge("The moon pulls.", "Explain tides.", criterion))


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


def test_answers_that_are_the_same_cost_no_call() -> None:
    writer = Writer()
    assert verdict_of(writer, "  one\n", "one") is SAME
    assert verdict_of(writer, "", "") is SAME
    assert (SAME.preference, SAME.consistent, SAME.win) == (0, True, 0.5)
    assert writer.requests == []


def test_an_empty_answer_is_judged() -> None:
    writer = by_order(says("A>>B"), says("B>>A"))
    assert verdict_of(writer, "first", "").preference == 2


def test_what_it_is_judged_by_reaches_the_prompt(said: Said) -> None:
    for criterion in (DEPTH, OVERALL, *INSTRUCTION_CRITERIA.values(), *RESPONSE_CRITERIA.values()):
        writer = answering_by(lambda request: says("A=B"))
        verdict_of(writer, criterion=criterion)
        for request in writer.requests:
            assert shown(request, "criterion") == criterion.name
            assert shown(request, "description") == criterion.description
            said(shown(request, "instruction"))
    said({criterion.name for criterion in INSTRUCTION_CRITERIA.values()})


async def test_the_judges_calls_are_made_for_its_stage_and_what_it_judges(said: Said) -> None:
    engine = Noting(answering_by(lambda request: says("A=B")))
    with dspy.context(lm=engine.lm):
        await PairwiseJudge().judge("Explain tides.", "first", "second")
        await PairwiseJudge().judge("Explain tides.", "first", "second", item="pair 4")
    said(engine.asked)


# --- no verdict: an abstention, and why

FAULTS: list[tuple[Answer, str]] = [
    ("What a pair!", "malformed: "),
    ('{"reason": "it is dee', "malformed: "),
    (says("A"), "malformed: "),
    (says("A>B", " "), "malformed: reason is empty"),
    (AnswerCut("cut at max_tokens=300"), "cut: "),
    (AnswerRefused("declined"), "refused: "),
    (response(" ", "content_filter"), "malformed: "),
    (lm_errors.ContextWindowExceededError(message="too long"), "too long: "),
    (lm_errors.LMInvalidRequestError("bad request"), "unfit: "),
    (lm_errors.LMTimeoutError("no answer in 600 s"), "no answer: "),
    (lm_errors.LMServerError("500"), "no answer: "),
]


def test_what_a_judge_decided_abstained_and_failed_on_is_counted_apart(said: Said) -> None:
    abstained, failed = (
        Verdict(None, None, (), "the judge could not tell"),
        Verdict(None, None, (), failed=Reason("cut", "so")),
    )
    grades = (
        Graded("depth", 3, "deep"),
        Graded("depth", None, "unclear"),
        Graded("depth", None, "x", failed=Reason("cut", "x")),
    )
    counted = Judgements.of([Verdict(0, True, ()), abstained, failed, *grades])
    assert counted == Judgements(2, 2, 2, "cut: so") and counted.asked == 6
    said(counted.warning())
    assert Judgements(2, 1, 1).warning() == ""
    said(str(Judgements(2, 1, 1)))
    assert Judgements(0, 0, 0).warning() == ""


@pytest.mark.parametrize(("fault", "why"), FAULTS)
@pytest.mark.parametrize("first", [True, False])
def test_a_call_that_fails_is_no_abstention_and_has_its_reason(fault: Answer, why: str, first: bool) -> None:
    verdict = verdict_of(by_order(fault, says("B>A")) if first else by_order(says("A>B"), fault))
    assert (verdict.preference, verdict.consistent, verdict.win) == (None, None, None)
    assert verdict.failed.startswith(why) and not verdict.abstained
    assert len(verdict.failed.splitlines()) == 1


@pytest.mark.parametrize(
    ("usual", "exchanged"), [("cannot tell", "A>B"), ("A>B", "cannot tell"), ("cannot tell", "cannot tell")]
)
def test_a_judge_that_cannot_tell_abstains_and_keeps_its_reasons(said: Said, usual: str, exchanged: str) -> None:
    verdict = verdict_of(by_order(says(usual), says(exchanged)))
    said((verdict.preference, verdict.consistent, verdict.abstained))
    assert len(verdict.reasons) == 2


# --- no judge


def test_an_endpoint_that_is_not_reached_raises(said: Said) -> None:
    writer = answering_by(lambda request: NotReached("connection refused"))
    with said.by(NoConnection):
        verdict_of(writer)
    with said.by(NoConnection):
        grade_of(writer)


def test_a_key_that_is_refused_raises(said: Said) -> None:
    writer = answering_by(lambda request: lm_errors.LMAuthError("wrong key"))
    with said.by(TeacherError):
        verdict_of(writer)
    with said.by(TeacherError):
        grade_of(writer)


def test_a_bug_is_raised_as_it_is() -> None:
    class Broken(SchemaAdapter):
        def format(self, *args: Any, **kwargs: Any) -> Any:
            raise KeyError("a bug")

    with dspy.context(adapter=Broken()), pytest.raises(KeyError, match="a bug"):
        verdict_of(Writer())
    with pytest.raises(lm_errors.LMUnexpectedError, match="a bug"):
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


def test_they_are_called_like_any_program(said: Said) -> None:
    with dspy.context(lm=fake_lm(by_order(says("A>B"), says("B>A")))):
        made = PairwiseJudge()(instruction="i", answer_a="first", answer_b="second")
        assert (made.preference, made.consistent, made.abstained, len(made.reasons)) == (1, True, "", 2)
    with dspy.context(lm=fake_lm(answering_by(lambda request: grades("4")))):
        made = RubricJudge()(text="t", context="c", criterion="depth", description="how deep it goes")
        said((made.grade, made.reason))


async def test_they_work_inside_a_running_loop() -> None:
    writer = by_order(says("A>B"), says("B>A"))
    with dspy.context(lm=fake_lm(writer)):
        inputs = {"instruction": "i", "answer_a": "first", "answer_b": "second"}
        assert PairwiseJudge()(**inputs, criterion="depth", description="how deep it goes").preference == 1
        assert (await PairwiseJudge().acall(**inputs)).preference == 1
    assert [shown(request, "criterion") for request in writer.requests] == ["depth"] * 2 + [OVERALL.name] * 2
    with dspy.context(lm=fake_lm(answering_by(lambda request: grades("4")))):
        assert RubricJudge()(text="t", context="c", criterion="depth", description="d").grade == 4


def test_a_copy_is_another_program() -> None:
    judge = PairwiseJudge()
    twin = copy.deepcopy(judge)
    twin.compare.signature = twin.compare.signature.with_instructions("Toss a coin.")
    assert judge.compare.signature.instructions != "Toss a coin."
    writer = by_order(says("A>B"), says("B>A"))
    with dspy.context(lm=fake_lm(writer)):
        assert asyncio.run(twin.judge("i", "first", "second")).preference == 1
    assert all("Toss a coin." in str(request.system) for request in writer.requests)


def test_a_tuned_judge_is_saved_and_loaded(said: Said, tmp_path: Path) -> None:
    for judge, fresh, name in (
        (PairwiseJudge(), PairwiseJudge(), "compare"),
        (RubricJudge(), RubricJudge(), "grade"),
    ):
        tuned = getattr(judge, name)
        tuned.signature = tuned.signature.with_instructions("Judge as a poet would.")
        tuned.demos = [dspy.Example(criterion="depth", reason="it rhymes", verdict="A>B", grade="5")]
        save_program(judge, tmp_path / "judge.json")
        load_into(fresh, tmp_path / "judge.json")
        loaded = getattr(fresh, name)
        said(loaded.signature.instructions)
        assert [dict(demo) for demo in loaded.demos] == [dict(demo) for demo in tuned.demos]
        assert fresh.dump_state() == judge.dump_state()
    with said.by(ConfigError):
        load_into(PairwiseJudge(), tmp_path / "judge.json")


async def test_a_judge_s_trace_is_in_one_order_whichever_call_ended_first() -> None:
    """A judge that is compiled is asked in both orders at once, and demonstrations are drawn from its trace."""
    traces = []
    for slow in ("first", "second"):

        class Answers:
            def __init__(self, slow: str) -> None:
                self.slow = slow

            async def complete(self, request: Request) -> Response:
                text = "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)
                await asyncio.sleep(0.03 if (text.index("one") < text.index("two")) == (self.slow == "first") else 0)
                return response(json.dumps({"reason": "r", "verdict": "A=B"}))

        with dspy.context(lm=recorded_lm(open_teacher(fake_lm(Writer())), Answers(slow)), trace=[]):
            await PairwiseJudge().acall(instruction="i", answer_a="one", answer_b="two")
            traces.append([step[1]["answer_a"] for step in dspy.settings.trace])
    assert traces[0] == traces[1] and len(traces[0]) == 2
