"""When a model that fails ends the work, and when it does not."""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from dspy import lm15
from dspy.lm15 import Message, Request, Response

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import (
    MalformedAnswer,
    NoAnswer,
    RefedError,
    RefusedAnswer,
    RowError,
    RunStopped,
    TeacherError,
    TeacherRefused,
    TooLong,
    UnfitRequest,
)
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.programs.lm_errors import AnswerCut
from refed_dspy.programs.question import Question
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.failures import LEAST_CALLS, RECENT, ROWS_OWN, CallPolicy, Failures
from refed_dspy.teachers.progress import Progress
from refed_dspy.teachers.recorded import Asked, RecordedTeacher
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references, response


def failures_of(role: str, policy: CallPolicy = CallPolicy(), *stages: str) -> Failures:  # noqa: B008
    """`stages`: those that an earlier start had an answer in."""
    return Failures(role, policy, lambda asked: bool(set(asked) & set(stages)))


def error(kind: type[RowError] = NoAnswer, stage: str = "writing") -> RowError:
    return kind(stage, "1", "so it is")


def fails(failures: Failures, count: int, kind: type[RowError] = NoAnswer, stage: str = "writing") -> None:
    for _ in range(count):
        failures.failed(stage, error(kind, stage))


@pytest.mark.parametrize("kind", [UnfitRequest, NoAnswer, MalformedAnswer, RefusedAnswer, TooLong])
def test_the_first_twenty_calls_end_it_whatever_their_kind_and_stage(said: Said, kind: type[RowError]) -> None:
    failures = failures_of("judge")
    fails(failures, LEAST_CALLS - 1, kind)
    with said.by(TeacherError if issubclass(kind, UnfitRequest) else RunStopped):
        fails(failures, 1, kind, "another stage")


def test_after_an_answer_it_is_a_share_of_the_stages_last_calls(said: Said) -> None:
    failures = failures_of("judge")
    failures.answered("writing")
    fails(failures, LEAST_CALLS - 2)
    with said.by(RunStopped):
        fails(failures, 1)


def test_long_ago_answers_do_not_count(said: Said) -> None:
    failures = failures_of("teacher", CallPolicy(max_failure_share=0.5))
    for _ in range(10 * RECENT):
        failures.answered("writing")
    fails(failures, RECENT // 2 - 1)
    with said.by(RunStopped):
        failures.paid = True
        fails(failures, 1)


def test_what_is_a_rows_own_does_not_count_once_others_are_answered() -> None:
    failures = failures_of("judge")
    failures.answered("writing")
    for kind in ROWS_OWN:
        fails(failures, 2 * RECENT, kind)
    failures.check_useful()


def test_one_stage_says_nothing_about_another() -> None:
    failures = failures_of("teacher")
    failures.answered("reading")
    fails(failures, LEAST_CALLS - 1)
    failures.answered("reading")
    with pytest.raises(RunStopped):
        fails(failures, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_calls_all_of_which_failed_are_useless(said: Said, count: int) -> None:
    failures, resumed = failures_of("judge"), failures_of("judge", CallPolicy(), "writing")
    for each in (failures, resumed):
        each.check_useful()
        fails(each, count)
    with said.by(RunStopped):
        failures.check_useful()
    resumed.check_useful()
    failures.answered("reading")
    failures.check_useful()


def test_answers_of_an_earlier_start_tell_whose_fault_a_failure_is() -> None:
    policy = CallPolicy(uncounted=(MalformedAnswer,))
    resumed = failures_of("teacher", policy, "writing")
    fails(resumed, 2 * RECENT, MalformedAnswer)
    with pytest.raises(RunStopped):
        fails(failures_of("teacher", policy, "reading"), LEAST_CALLS, MalformedAnswer)


# --- an endpoint that answers 400 to everything for a while, as some do to a wrong key


def teacher(server: SimulatedTeacher) -> TeacherConfig:
    return TeacherConfig(model="sim/sim-model", api_base=server.base_url, retries=0, concurrency=4)


def run(folder: Path, server: SimulatedTeacher, size: int) -> Synthesis:
    return refed_dspy.synthesize(None, references(12), teacher=teacher(server), run_dir=folder, size=size)


def failures_in(folder: Path) -> list[tuple[str, bool]]:
    """(kind, whether it is final) of each failure."""
    with Ledger.read(folder) as ledger:
        return [(kind, bool(final)) for kind, final in ledger.db.execute("SELECT kind, final FROM failures")]


def test_refusals_before_any_answer_are_the_endpoints_and_nothing_is_lost(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(faults={"400": 1.0}, response_words=4)
    with pytest.raises(TeacherRefused):
        run(tmp_path / "run", server, 20)
    assert set(failures_in(tmp_path / "run")) == {("unfit", False)}
    server.control(faults={})
    assert run(tmp_path / "run", server, 20).complete


def test_a_later_burst_of_refusals_costs_no_row_for_good(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(response_words=4)
    run(tmp_path / "run", server, 4)
    server.control(faults={"400": 1.0})
    with pytest.raises(RefedError):
        run(tmp_path / "run", server, 60)
    failed = failures_in(tmp_path / "run")
    assert set(failed) == {("unfit", False)} and len(failed) >= LEAST_CALLS
    server.control(faults={})
    assert run(tmp_path / "run", server, 60).complete and server.stats()["repeated"] == 0


# --- and a row's own refusals


def test_a_rows_own_refusal_is_final(tmp_path: Path) -> None:
    writer = Writer(lm15.ContextLengthError("9,000 tokens", status=400))
    made = refed_dspy.synthesize(None, references(6), teacher=fake_lm(writer), run_dir=tmp_path / "run", size=20)
    assert made.complete and [failure.kind for failure in made.failures] == [TooLong.kind]
    asked = len(writer.requests)
    refed_dspy.synthesize(None, references(6), teacher=fake_lm(writer), run_dir=tmp_path / "run", size=20)
    assert len(writer.requests) == asked


# --- what arrives together, and what failed before


class Together:
    """An engine that answers when all have asked: those of `cut` with half an answer."""

    def __init__(self, cut: set[int]) -> None:
        self.cut, self.all_asked = cut, asyncio.Event()

    async def complete(self, request: Any) -> Response:
        await self.all_asked.wait()
        if int(request.messages[0].parts[0].text) in self.cut:
            raise AnswerCut("cut")
        return response("Fine.")


async def test_answers_that_arrive_together_with_failures_count_at_once(tmp_path: Path) -> None:
    """As those of a batch do: their commit comes later."""
    engine = Together(cut=set(range(0, 100, 3)))
    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
        recorder = RunRecorder(ledger, Caps(), spent(ledger))
        recorded = RecordedTeacher(ledger, recorder, open_teacher(fake_lm(Writer())), Progress(0))
        recorded.engine = engine

        async def ask(number: int) -> Any:
            request = Request(model="m", messages=(Message.user(str(number)),))
            return await recorded.answer(Asked(request, Question("writing", str(number))))

        asked = [asyncio.create_task(ask(number)) for number in range(100)]
        await asyncio.sleep(0.05)
        engine.all_asked.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        recorder.group.close()
    assert recorder.ended is None and recorded.progress.failed == {"cut": len(engine.cut)}
    assert {type(each).__name__ for each in answers} == {"Answer", "CutAnswer"}


def odd_rows(start: int) -> Writer:
    """Refuses every fourth instruction, for good."""
    writer = Writer()
    writer.numbers = itertools.count(1_000 * start)

    def refusal(request: Any) -> Any:
        found = re.findall(r"Task (\d+): do it", str(request.messages[-1]))
        odd = "response" in writer.fields(request)[0] and found and int(found[-1]) % 4 == 3
        return lm15.InvalidRequestError("not accepted", status=400) if odd else None

    writer.on_request = refusal
    return writer


def test_rows_that_an_earlier_start_saw_refused_do_not_end_the_next(tmp_path: Path) -> None:
    for start, size in enumerate((80, 100)):
        made = refed_dspy.synthesize(
            None, references(12), teacher=fake_lm(odd_rows(start)), run_dir=tmp_path / "run", size=size
        )
        assert made.complete and len(made.failures) >= LEAST_CALLS


def test_a_pools_member_that_refuses_everything_after_it_answered_is_an_outage(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for start, size in enumerate((40, 80)):
        good, bad = Writer(), Writer()
        for writer, first in ((good, 1_000), (bad, 5_000)):
            writer.numbers = itertools.count(first * (start + 1))
        if start:
            bad.on_request = lambda _: lm15.InvalidRequestError("bad key", status=400)
        teachers = [fake_lm(good, "fake/good"), fake_lm(bad, "fake/bad")]
        made = refed_dspy.synthesize(None, references(12), teacher=teachers, run_dir=tmp_path / "run", size=size)
        assert made.complete and not made.failures
    assert len(bad.requests) < 40
    said(caplog.messages)


def test_a_pools_member_that_refuses_from_the_start_ends_the_run(tmp_path: Path) -> None:
    good, bad = Writer(), Writer()
    bad.on_request = lambda _: lm15.InvalidRequestError("bad key", status=400)
    teachers = [fake_lm(good, "fake/good"), fake_lm(bad, "fake/bad")]
    with pytest.raises(RefedError, match="fake/bad"):
        refed_dspy.synthesize(None, references(12), teacher=teachers, run_dir=tmp_path / "run", size=200)
    assert len(bad.requests) >= LEAST_CALLS
