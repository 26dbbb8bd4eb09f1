"""What ends a compile at the gateway, and how the gateway closes."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils import exceptions as lm_errors

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import RunStopped, TeacherError
from refed_dspy.ledger.budget import Caps
from refed_dspy.optimizers.gateway import Gateway
from refed_dspy.programs.lm_errors import InTransit, LMCapReached
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.failures import LEAST_CALLS
from tests.conftest import KEY_VARIABLE
from tests.support.gateways import (
    PATIENCE,
    ask_text,
    calls,
    config,
    numbered,
    opened,
    outcome,
    requests,
    until,
)
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, response


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=4)
    return server


# --- what ends a compile


def stopped_by(gateway: Gateway) -> str:
    error = gateway.stop_error
    assert isinstance(error, TeacherError | RunStopped) and "\n" not in str(error)
    return str(error)


def test_a_wrong_key_ends_it_with_a_hint_and_without_the_key(
    said: Said, locked: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "sk-wrong-0987654321fedcba"
    monkeypatch.setenv(KEY_VARIABLE, wrong)
    with opened(tmp_path, judge=config(locked, api_key_env=KEY_VARIABLE)) as gateway:
        lm = gateway.lm("judge")
        first = outcome(lambda: ask_text(lm))
        assert isinstance(first, InTransit) and isinstance(first.error, TeacherError) and wrong not in str(first)
        assert isinstance(outcome(lambda: ask_text(lm, "Another?")), LMCapReached)
        said(stopped_by(gateway))
    assert requests(locked) == 1, "no call begins after it"


@pytest.mark.parametrize(
    "settings", [{"model": "openai/missing-one"}, {"api_base": "http://127.0.0.1:9/v1", "retries": 4}], ids=str
)
def test_a_model_or_an_endpoint_that_is_not_there_ends_it_at_once(
    said: Said, server: SimulatedTeacher, tmp_path: Path, settings: dict[str, Any]
) -> None:
    begun = time.monotonic()
    with opened(tmp_path, teacher=config(server, **settings)) as gateway:
        assert isinstance(outcome(lambda: ask_text(gateway.lm("teacher"))), lm_errors.LMError)
        said(stopped_by(gateway))
    assert time.monotonic() - begun < PATIENCE and not sum(call["cost"] for call in calls(tmp_path))


def failing(gateway: Gateway, count: int, start: int = 0) -> None:
    for ask in numbered(gateway.lm("teacher"), range(start, start + count)):
        assert isinstance(outcome(ask), Exception)


def test_so_many_failures_in_a_row_end_it(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"500": 1})
    with opened(tmp_path, teacher=config(server)) as gateway:
        failing(gateway, LEAST_CALLS - 1)
        assert gateway.stop_error is None
        failing(gateway, 4, start=LEAST_CALLS)
        said(stopped_by(gateway))
    assert requests(server) == LEAST_CALLS


@pytest.mark.parametrize("fault", ["drop", "hang"])
def test_an_endpoint_that_never_answers_ends_it_sooner(
    said: Said, server: SimulatedTeacher, tmp_path: Path, fault: str
) -> None:
    """Each such call may have been billed."""
    server.control(faults={fault: 1})
    with opened(tmp_path, teacher=config(server, timeout=0.03 if fault == "hang" else 5)) as gateway:
        failing(gateway, LEAST_CALLS)
        said(stopped_by(gateway))
    assert requests(server) < LEAST_CALLS / 2


@pytest.mark.slow
def test_an_endpoint_that_goes_down_ends_it(said: Said, tmp_path: Path) -> None:
    with (
        SimulatedTeacher(latency=0, sigma=0) as short_lived,
        opened(tmp_path, teacher=config(short_lived, max_tokens=512)) as gateway,
    ):
        ask_text(gateway.lm("teacher"))
        short_lived.stop()
        failing(gateway, LEAST_CALLS)
        said(stopped_by(gateway))
    assert len(calls(tmp_path)) == 1, "what never reached it costs nothing"


def test_it_goes_on_where_more_than_half_is_answered(tmp_path: Path) -> None:
    down = lm15.ServerError("overloaded", status=503)
    with opened(tmp_path, teacher=fake_lm(Writer(*["Fine.", "Fine.", down] * LEAST_CALLS))) as gateway:
        for ask in numbered(gateway.lm("teacher"), range(3 * LEAST_CALLS)):
            outcome(ask)
        assert gateway.stop_error is None and gateway.unanswered == LEAST_CALLS


@pytest.mark.parametrize(("role", "goes_on"), [("teacher", True), ("judge", False)])
def test_a_candidate_may_spoil_the_teachers_answers_but_not_the_judges(
    tmp_path: Path, role: str, goes_on: bool
) -> None:
    """What the teacher writes for a bad candidate is cut or malformed: that is the candidate's score."""
    cut = [response("Half an ans", "length")] * LEAST_CALLS
    with opened(tmp_path, **{role: fake_lm(Writer("Fine.", *cut))}) as gateway:
        for ask in numbered(gateway.lm(role), range(LEAST_CALLS)):
            outcome(ask)
        assert (gateway.stop_error is None) == goes_on


def test_one_role_that_fails_does_not_count_for_another(said: Said, tmp_path: Path) -> None:
    failing_writer, fine = Writer(), Writer()
    failing_writer.on_request = lambda _: lm15.ServerError("overloaded", status=503)
    fine.on_request = lambda _: "Fine."
    with opened(tmp_path, teacher=fake_lm(failing_writer), judge=fake_lm(fine, temperature=0.0)) as gateway:
        asks = (numbered(gateway.lm(role), range(LEAST_CALLS)) for role in ("teacher", "judge"))
        for both in zip(*asks, strict=True):
            [outcome(ask) for ask in both]
        said(stopped_by(gateway))


# --- closing


def test_closing_releases_every_thread_and_records_what_is_in_flight(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"hang": 1})
    pool = ThreadPoolExecutor(12)
    with opened(tmp_path, teacher=config(server, timeout=600)) as gateway:
        lm = gateway.lm("teacher")
        asked = [pool.submit(outcome, ask) for ask in numbered(lm, [0, 1, 2, 3, 0])]
        until(lambda: requests(server) == 4 and len(gateway._tasks) == 5)
        begun = time.monotonic()
    assert time.monotonic() - begun < 3
    assert all(isinstance(each.result(PATIENCE), CancelledError | Exception) for each in asked)
    pool.shutdown()
    assert [row["outcome"] for row in calls(tmp_path)] == ["cancelled"] * 4
    assert all(row["cost"] == row["reserved"] > 0 for row in calls(tmp_path))
    assert isinstance(outcome(lambda: ask_text(lm, "Late?")), LMCapReached)
    until(lambda: server.stats()["in_flight"] == 0)
    assert requests(server) == 4


class Silent:
    """An endpoint that never answers."""

    supports_response_schema = True
    supported_params = frozenset({"response_format", "temperature", "max_tokens"})

    def complete(self, request: Any) -> Any:
        raise AssertionError("the gateway asks the asynchronous engine")

    @property
    def asynchronous(self) -> Any:
        class Waiting:
            async def complete(self, request: Any) -> Any:
                await asyncio.Event().wait()

        return Waiting()


def closes_while_many_wait_for_one_call(folder: Path) -> None:
    silent = Silent()
    teacher = dspy.LM("fake/model", engine=silent, async_engine=silent.asynchronous, num_retries=0, cache=False)
    with opened(folder, teacher=teacher) as gateway:
        lm = gateway.lm("teacher")
        for _ in range(60):
            threading.Thread(target=outcome, args=(lambda: ask_text(lm),), daemon=True).start()
        until(lambda: len(gateway._tasks) == 60)
        time.sleep(0.5)
    (folder / "closed").touch()


@pytest.mark.slow
def test_closing_ends_where_many_threads_wait_for_one_call(tmp_path: Path) -> None:
    """In a process of its own: a loop that spins cannot be stopped otherwise."""
    process = multiprocessing.get_context("fork").Process(target=closes_while_many_wait_for_one_call, args=(tmp_path,))
    process.start()
    process.join(4)
    process.kill()
    process.join()
    assert (tmp_path / "closed").exists()


def test_closing_lets_go_of_those_that_wait_for_money(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"hang": 1})
    least = open_teacher(config(server)).least
    assert least is not None
    pool = ThreadPoolExecutor(8)
    with opened(tmp_path, Caps(max_cost=int(1.5 * least)), teacher=config(server, timeout=600)) as gateway:
        asked = [pool.submit(outcome, ask) for ask in numbered(gateway.lm("teacher"), range(8))]
        until(lambda: requests(server) == 1 and len(gateway._tasks) == 8)
    assert all(isinstance(each.result(PATIENCE), Exception) for each in asked)
    pool.shutdown()
    assert [row["outcome"] for row in calls(tmp_path)] == ["cancelled"]
    assert requests(server) == 1


def test_a_thread_that_asks_just_when_it_closes_is_let_go(
    server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began to ask while the gateway was open, and hands its question over only when that has closed."""
    run_on_loop = Gateway._run_on_loop
    may, ready = threading.Event(), threading.Event()

    def late(*arguments: Any) -> Any:
        if threading.current_thread().name == "late":
            ready.set()
            may.wait(PATIENCE)
        return run_on_loop(*arguments)

    monkeypatch.setattr(Gateway, "_run_on_loop", late)
    got: list[Any] = []
    with opened(tmp_path, teacher=config(server)) as gateway:
        thread = threading.Thread(
            name="late", target=lambda: got.append(outcome(lambda: ask_text(gateway.lm("teacher"))))
        )
        thread.start()
        ready.wait(PATIENCE)
    may.set()
    thread.join(PATIENCE)
    assert not thread.is_alive() and isinstance(got[0], LMCapReached)


def test_an_error_inside_the_block_comes_out_and_closes_it(server: SimulatedTeacher, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), opened(tmp_path, teacher=config(server)):
        raise ZeroDivisionError
    until(lambda: threading.active_count() <= before)


def test_a_model_that_does_not_start_is_told(said: Said, tmp_path: Path) -> None:
    def broken() -> Any:
        raise TeacherError("no weights")

    teacher = open_teacher(fake_lm(Writer()))
    teacher.start = broken
    with said.by(TeacherError), opened(tmp_path, teacher=teacher):
        pass
