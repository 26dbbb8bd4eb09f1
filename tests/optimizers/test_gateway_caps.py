"""Caps at the gateway, malformed answers, and what an endpoint may be asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import MalformedAnswer
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.statements import Answer
from refed_dspy.optimizers.gateway import Gateway
from refed_dspy.optimizers.spec import open_teachers
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.lm_errors import LMCapReached
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.recorded import Asked
from refed_dspy.teachers.requests import Outgoing
from refed_dspy.teachers.route import resolve
from tests.support.asking import ask
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
    requests,
    until,
)
from tests.support.said import Said


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=4)
    return server


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


def test_a_higher_cap_is_for_those_that_wait_too(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.5)
    least = open_teacher(config(server)).least
    assert least is not None
    with opened(tmp_path, Caps(max_cost=int(1.5 * least)), teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask_text, lm, f"What is {n}?") for n in range(4)]
            until(lambda: requests(server) == 1)
            gateway.allow(Caps())
            until(lambda: requests(server) == 4)
            assert all(each.result(PATIENCE) for each in asked)


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
