"""Several teachers: who goes on where one is down."""

from __future__ import annotations

import asyncio
import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
from dspy import lm15

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import NoConnection, RunStopped, TeacherError, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.lm_errors import NotReached, StillLimited
from refed_dspy.teachers.outage import FIRST_OUTAGE, LONGEST_OUTAGE, Outage
from tests.conftest import KEY_VARIABLE
from tests.support.clocks import Clock
from tests.support.said import Said
from tests.support.scripted_engine import Writer
from tests.support.two_teachers import (
    answered_twice,
    asked,
    at_session,
    check_lineage,
    config,
    pool,
    repeated,
    run,
)


def test_where_one_is_killed_the_others_go_on(
    said: Said, two: tuple[SimulatedTeacher, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two[1].control(down_after=12)
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        made = run(tmp_path / "run", 24, teacher=pool(two))
    assert made.complete and not made.failures, "what another made good is no failure"
    assert repeated(two) == 0
    check_lineage(made, two)
    said([line for line in caplog.messages if line.startswith("sim/other-model at")])
    assert not answered_twice(made.run_dir)


def test_a_key_that_never_worked_ends_the_run(
    two: tuple[SimulatedTeacher, ...],
    locked: SimulatedTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = "sk-wrong-987654321"
    locked.control(response_words=5)
    monkeypatch.setenv("WRONG_KEY", wrong)
    mistaken = config(locked, model="sim/other-model", api_key_env="WRONG_KEY")
    often, seldom = (mistaken.model_copy(update={"weight": weight}) for weight in (1e6, 0.1))
    with pytest.raises(TeacherRefused, match="sim/other-model") as refused:
        run(tmp_path / "first", teacher=[often, config(two[0])])
    assert refused.value.exit_code == 2 and wrong not in str(refused.value) and two[0].stats()["requests"] == 0
    run(tmp_path / "run", 4, teacher=config(two[0]))
    with pytest.raises(TeacherRefused, match="sim/other-model"):
        run(tmp_path / "run", 12, teacher=[often, config(two[0])])
    with pytest.raises(RunStopped, match="sim/other-model"):
        run(tmp_path / "late", 100, teacher=[seldom, config(two[0])])
    assert asked(two)[0] > 4, "others had answered: then it is no mistake that cost nothing"
    right = mistaken.model_copy(update={"api_key_env": KEY_VARIABLE})
    assert run(tmp_path / "run", 12, teacher=[right, config(two[0])]).complete


def test_one_that_cannot_be_reached_at_the_start_is_down_and_all_are_a_mistake(
    said: Said, two: tuple[SimulatedTeacher, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = config("http://127.0.0.1:9/v1")
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        made = run(tmp_path / "run", 4, teacher=[nobody, config(two[0])])
    assert made.complete and not made.failures
    said(caplog.messages)
    with said.by(TeacherRefused) as refused:
        run(tmp_path / "none", 10, teacher=[nobody, config("http://127.0.0.1:19/v1")])
    assert refused.value.exit_code == 2


@pytest.mark.slow
def test_where_all_are_down_the_run_ends_and_goes_on_later(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    for server in two:
        server.control(down_after=15)
    with pytest.raises(RunStopped):
        run(tmp_path / "run", 200, teacher=pool(two))
    for server in two:
        server.control(down_after=None)
    made = refed_dspy.resume(tmp_path / "run", size=60)
    assert made.complete and repeated(two) == 0
    check_lineage(made, two)
    with Ledger.read(made.run_dir) as ledger:
        both = "SELECT 1 FROM failures f JOIN answers a ON (a.stage, a.item) = (f.stage, f.item) WHERE a.repetition=0"
        found = ledger.db.execute(both).fetchall()
    assert not found, "what was answered later is no failure"


@pytest.mark.slow
def test_a_model_that_writes_nothing_usable_ends_the_run_by_name(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path
) -> None:
    two[1].control(faults={"malformed": 1.0})
    with pytest.raises(RunStopped, match="sim/other-model"):
        run(tmp_path / "run", 100, teacher=pool(two), max_failure_share=1.0)


def test_a_teacher_that_is_down_is_probed_with_one_question_and_then_left_longer() -> None:
    clock = Clock()
    outage = Outage(clock)
    assert outage.may_ask() and outage.begin() and not outage.begin(), "it goes down once"
    clock.now += FIRST_OUTAGE - 1
    assert outage.down and not outage.may_ask()
    clock.now += 1
    assert outage.may_ask() and not outage.may_ask(), "one question"
    assert not outage.begin() and outage.seconds == 2 * FIRST_OUTAGE
    for _ in range(9):
        clock.now += outage.seconds
        assert outage.may_ask() and not outage.begin()
    assert outage.seconds == LONGEST_OUTAGE
    clock.now += outage.seconds
    assert outage.may_ask()
    outage.end()
    assert not outage.down and outage.may_ask() and outage.may_ask()
    clock.now += LONGEST_OUTAGE
    assert outage.begin() and outage.seconds == FIRST_OUTAGE, "it was well for long"
    clock.now += FIRST_OUTAGE
    assert outage.may_ask()
    outage.probe_again()
    assert outage.may_ask() and not outage.may_ask(), "the question that probed it told nothing"
    outage.end()
    clock.now += FIRST_OUTAGE - 1
    assert outage.begin() and outage.seconds == 2 * FIRST_OUTAGE, "it was well for a moment"


@pytest.mark.parametrize(
    "error",
    [lm15.ServerError("busy", status=503), StillLimited("refuses everything", model="m"), lm15.AuthError("revoked")],
    ids=lambda error: type(error).__name__,
)
async def test_one_that_comes_back_is_asked_again(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    down, writers, clock = [False], [Writer(), Writer()], Clock()
    writers[1].on_request = lambda request: error if down[0] else None

    async def asked_of_each(rounds: int, ticks: float) -> list[int]:
        before = [len(writer.requests) for writer in writers]
        for _ in range(rounds):
            clock.now += ticks
            await asyncio.gather(*(ask_pool(next(numbers)) for _ in range(8)))
        return [len(writer.requests) - was for writer, was in zip(writers, before, strict=True)]

    numbers = itertools.count()
    with Ledger.create(tmp_path / "run") as ledger, caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        session, ask_pool = at_session(ledger, writers, clock)
        async with session.running():
            assert all(await asked_of_each(4, 0))
            down[0] = True
            assert (await asked_of_each(4, 0))[1] <= 8, "those in flight"
            assert (await asked_of_each(1, FIRST_OUTAGE))[1] == 1, "one question shows that it is still down"
            down[0] = False
            assert (await asked_of_each(1, FIRST_OUTAGE))[1] == 0
            assert (await asked_of_each(1, FIRST_OUTAGE))[1] >= 1
            assert (await asked_of_each(4, 0))[1] > 4
        assert not ledger.failures()
    went_down, came_back = caplog.messages
    said([went_down.partition(" (")[0], came_back])


async def test_a_probe_that_ends_without_an_answer_or_failure_is_made_again_and_the_tokens_of_all_are_shown(
    tmp_path: Path,
) -> None:
    answers: list[Any] = []
    errors: list[Exception] = [lm15.ServerError("busy", status=503), ZeroDivisionError("a bug")]
    writers, clock = [Writer(), Writer()], Clock()
    writers[1].on_request = lambda request: errors.pop(0) if errors else None
    with Ledger.create(tmp_path / "run") as ledger:
        session, ask_pool = at_session(ledger, writers, clock)
        async with session.running():
            for number in range(20):
                clock.now += FIRST_OUTAGE
                answers.extend(await asyncio.gather(ask_pool(number), return_exceptions=True))
        progress = session.progress
    assert not errors and len(writers[1].requests) > 4
    (bug,) = (answer for answer in answers if isinstance(answer, Exception))
    assert (progress.prompt_tokens, progress.completion_tokens, progress.in_flight) == (1900, 380, 0), bug


@pytest.mark.parametrize(("answered", "error"), [(True, NoConnection), (False, TeacherError)])
async def test_where_none_can_be_reached_it_is_a_mistake_only_if_none_ever_was(
    tmp_path: Path, answered: bool, error: type[Exception]
) -> None:
    writers, reached = [Writer(), Writer()], [answered]
    for writer in writers:
        writer.on_request = lambda request: None if reached[0] else NotReached("it is away", model="m")
    with Ledger.create(tmp_path / "run") as ledger:
        session, ask_pool = at_session(ledger, writers, Clock())
        async with session.running():
            if answered:
                await ask_pool(0)  # one of the two answers
            reached[0] = False
            with pytest.raises(error):
                await ask_pool(1)
    assert sum(len(writer.requests) for writer in writers) == 2 + answered
