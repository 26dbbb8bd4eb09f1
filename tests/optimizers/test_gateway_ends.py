"""What ends a compile at the gateway, how the gateway closes, caps, and malformed answers."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils import exceptions as lm_errors

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import MalformedAnswer, NoConnection, RunStopped, TeacherError
from refed_dspy.jobs.gateway import Gateway
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.statements import Answer
from refed_dspy.optimizers.spec import open_teachers
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.lm_errors import InTransit, LMCapReached
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.failures import LEAST_CALLS
from refed_dspy.teachers.recorded import Asked
from refed_dspy.teachers.requests import Outgoing
from refed_dspy.teachers.route import resolve
from tests.conftest import KEY_VARIABLE
from tests.support.asking import ask
from tests.support.clocks import until
from tests.support.compiling import requests
from tests.support.gateways import (
    PATIENCE,
    Answering,
    ask_text,
    at_once,
    billed,
    calls,
    config,
    numbered,
    opened,
    outcome,
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
    for question in numbered(gateway.lm("teacher"), range(start, start + count)):
        assert isinstance(outcome(question), Exception)


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
def test_an_endpoint_that_goes_down_ends_it(tmp_path: Path) -> None:
    with (
        SimulatedTeacher(latency=0, sigma=0) as short_lived,
        opened(tmp_path, teacher=config(short_lived, max_tokens=512)) as gateway,
    ):
        ask_text(gateway.lm("teacher"))
        short_lived.stop()
        failing(gateway, LEAST_CALLS)
        assert NoConnection.kind in stopped_by(gateway)
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


# --- caps


def test_max_calls_is_never_passed_by_fifty_threads(server: SimulatedTeacher, tmp_path: Path) -> None:
    """It counts what failed, and is shared by all roles."""
    server.control(latency=0.01, sigma=0.5, faults={"500": 0.3, "drop": 0.2})
    judge = config(server, temperature=0, retries=4)
    with opened(tmp_path, Caps(max_calls=25), teacher=config(server), judge=judge) as gateway:
        asks = zip(numbered(gateway.lm("teacher"), range(25)), numbered(gateway.lm("judge"), range(25)), strict=True)
        got = at_once([ask for both in asks for ask in both])
        assert gateway.cap_reached == "max_calls"
    assert requests(server) <= 25 == len(calls(tmp_path))
    assert LMCapReached in {type(each) for each in got}


def test_max_cost_is_never_passed_by_fifty_threads(server: SimulatedTeacher, tmp_path: Path) -> None:
    """At most five worst cases fit at a time, so most threads wait for what others give back."""
    server.control(latency=0.01, faults={"cut": 0.1, "drop": 0.1, "nousage": 0.1})
    least = open_teacher(config(server)).least
    assert least is not None
    cap = 6 * least
    with opened(tmp_path, Caps(max_cost=cap), teacher=config(server)) as gateway:
        at_once(numbered(gateway.lm("teacher"), range(50)))
        assert gateway.cap_reached == "max_cost"
    recorded_cost = sum(row["cost"] for row in calls(tmp_path))
    assert billed(server) <= recorded_cost <= cap
    assert recorded_cost > cap / 2, "what came back was used"


@pytest.mark.slow
def test_max_minutes_lets_go_of_whatever_hangs(server: SimulatedTeacher, tmp_path: Path) -> None:
    opening = time.monotonic()
    with opened(tmp_path, teacher=config(server, timeout=600)) as gateway:
        lm = gateway.lm("teacher")
        ask_text(lm, "A first question, which may import for a second.")
        server.control(faults={"hang": 1})
        begun = time.monotonic()
        gateway.allow(Caps(), seconds=begun - opening + 2)  # from its opening; a busy machine needs them
        got = at_once(numbered(lm, range(20)))
        assert {type(each) for each in got} == {LMCapReached} and gateway.cap_reached == "max_minutes"
        sent = requests(server)
        assert isinstance(outcome(lambda: ask_text(lm)), LMCapReached) and requests(server) == sent
    assert time.monotonic() - begun < PATIENCE
    answered, *ended = calls(tmp_path)
    assert answered["outcome"] == "ok" and {row["outcome"] for row in ended} == {"cancelled"}
    assert all(row["cost"] == row["reserved"] for row in ended), "they may be billed: their worst case"


def test_a_deadline_in_the_past_sends_nothing(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        gateway.allow(Caps(), seconds=0)
        assert isinstance(outcome(lambda: ask_text(gateway.lm("teacher"))), LMCapReached)
    assert requests(server) == 0 == len(calls(tmp_path))


async def test_the_cap_comes_through_predict_as_it_is(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    told = set[str]()
    with opened(tmp_path, Caps(max_calls=1), teacher=config(server)) as gateway:
        seen = []
        model = gateway.models["teacher"]
        answer = model.answer

        async def watched(asked: Asked) -> Answer:
            seen.append(asked)
            return await answer(asked)

        model.answer = watched  # type: ignore[method-assign]
        lm = gateway.lm("teacher")
        await asyncio.to_thread(ask_text, lm)
        seen.clear()
        for adapter in (None, dspy.ChatAdapter(), dspy.JSONAdapter()):
            with dspy.context(lm=lm, adapter=adapter):
                with pytest.raises(LMCapReached) as sync_error:
                    await asyncio.to_thread(dspy.Predict(Answering), question="1?")
                with pytest.raises(LMCapReached) as async_error:
                    await dspy.Predict(Answering).acall(question="2?")
            assert type(sync_error.value) is type(async_error.value) is LMCapReached
            told |= {str(sync_error.value), str(async_error.value)}
        assert len(seen) == 6, "none was retried"
    said(sorted(told))
    assert requests(server) == 1


def test_a_higher_cap_lets_work_go_on(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, Caps(max_calls=2), teacher=config(server)) as gateway:
        asks = numbered(gateway.lm("teacher"), range(4))
        first = [outcome(ask) for ask in asks]
        assert gateway.cap_reached == "max_calls"
        gateway.allow(Caps(max_calls=3))
        assert gateway.cap_reached == ""
        second = [outcome(ask) for ask in asks]
    assert [isinstance(each, str) for each in first] == [True, True, False, False]
    assert [isinstance(each, str) for each in second] == [True, True, True, False]
    assert second[:2] == first[:2] and requests(server) == 3


# --- more than one try


@contextmanager
def asking(gateway: Gateway, quiet: bool) -> Iterator[None]:
    """The stages' way of asking; `quiet` as in the metric's own calls, where DSPy's layers are left out."""
    lean: dict[str, Any] = {"disable_history": True, "trace": None, "max_trace_size": 0, "callbacks": []}
    with dspy.context(lm=gateway.lm("teacher"), adapter=SchemaAdapter(), **(lean if quiet else {})):
        yield


async def staged(question: str = "1?") -> Any:
    return await ask("answering", "row", dspy.Predict(Answering), question=question)


@pytest.mark.parametrize(("quiet", "temperature"), [(False, 1.0), (True, 0.0)], ids=["watched", "straight"])
async def test_a_malformed_answer_is_asked_for_again_and_what_stays_malformed_is_remembered(
    server: SimulatedTeacher, tmp_path: Path, temperature: float, quiet: bool
) -> None:
    server.control(faults={"malformed": 1})
    teacher = config(server, temperature=temperature, malformed_retries=2)
    reasons = set()
    for _ in range(2):  # the second time from the ledger
        with opened(tmp_path, teacher=teacher) as gateway, asking(gateway, quiet):
            with pytest.raises(MalformedAnswer) as malformed:
                await staged()
            assert gateway.stop_error is None and not gateway.unanswered
        reasons.add(malformed.value.reason)
        assert requests(server) == 3 and [call["outcome"] for call in calls(tmp_path)] == ["malformed"] * 3
    assert len(reasons) == 1, "it is told in the same words"


async def test_the_first_answer_that_fits_is_taken_and_comes_again(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"malformed": 0.5}, seed=3)
    teacher = config(server, malformed_retries=9)
    questions = [f"{n}?" for n in range(8)]
    with opened(tmp_path, teacher=teacher) as gateway, asking(gateway, quiet=False):
        first = [(await staged(question)).answer for question in questions]
    asked = requests(server)
    assert asked > len(questions)
    with opened(tmp_path, teacher=teacher) as gateway, asking(gateway, quiet=False):
        assert [(await staged(question)).answer for question in questions] == first
    assert requests(server) == asked


# --- what an endpoint may be asked


def test_nobody_is_written_more_than_the_settings_allow(server: SimulatedTeacher) -> None:
    """A cap counts on max_tokens, and a module of the user's own may ask for any number."""
    teacher = config(server)
    outgoing = Outgoing(teacher, resolve(teacher))
    for asked, sent in [(900, 64), (64, 64), (8, 8), (None, 64)]:
        request = lm15.Request(model="m", messages=(lm15.Message.user("Hm?"),), config=lm15.Config(max_tokens=asked))
        assert outgoing(request)[0].config.max_tokens == sent


def test_a_judge_that_is_the_teacher_s_model_keeps_to_the_teacher_s_limits(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(latency=0.05)
    for model, together in [("openai/sim", True), ("openai/sim-two", False)]:
        server.reset()
        judge = config(server, concurrency=50, temperature=0.0, model=model)
        models: Any = open_teachers(config(server, concurrency=3), judge)
        with opened(tmp_path / str(together), **models) as gateway:
            asks = [*numbered(gateway.lm("teacher"), range(12)), *numbered(gateway.lm("judge"), range(12))]
            assert all(isinstance(each, str) for each in at_once(asks))
        assert (server.stats()["max_in_flight"] <= 3) is together, "another model has limits of its own"
