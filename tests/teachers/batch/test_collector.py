"""Batch mode: whose answer is whose, what is sent together and when, and what it costs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import CapReached
from refed_dspy.ledger.batches import BatchLog
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import CallRecorder, RunRecorder
from refed_dspy.ledger.statements import Key
from refed_dspy.records import Call
from refed_dspy.teachers import open_teacher
from tests.support.scripted_batches import (
    COST,
    BatchFiles,
    Line,
    ScriptedService,
    ask,
    ask_all,
    ask_engine,
    asked,
    batched,
    bill,
    body,
    calls,
    line,
    recorded_teacher,
    simulated,
    states,
    teacher_config,
    until,
    written,
)
from tests.support.scripted_engine import references

# --- whose answer, and what is sent together


async def test_answers_in_any_order_reach_their_own_waiter(tmp_path: Path, service: ScriptedService) -> None:
    def backwards(lines: Sequence[Line]) -> BatchFiles:
        answers = [line(request["custom_id"], body(asked(request))) for request in lines]
        return written(*answers[::-2]), written(*answers[-2::-2])

    service.answers = [backwards]
    texts = [f"q{n}" for n in range(25)]
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        assert await ask_all(recorded, texts) == texts
        assert await ask_all(recorded, texts) == texts, "the second time they are in the ledger"
    assert len(service.sent) == 1 and calls(tmp_path) == {("ok", COST): 25} and batched(tmp_path) == 0


@pytest.mark.parametrize(("limits", "sizes"), [({"requests": 4}, [4, 4, 2]), ({"megabytes": 0.0001}, [1] * 10)])
async def test_limits_split_a_wave(tmp_path: Path, service: ScriptedService, limits: Any, sizes: list[int]) -> None:
    config = teacher_config(service, batch={"quiet": 0.02, "poll": 0.02, **limits})
    async with recorded_teacher(tmp_path, config) as recorded:
        texts = [f"q{n}" for n in range(10)]
        assert await ask_all(recorded, texts) == texts
    assert sorted(map(len, service.sent)) == sorted(sizes)


def test_a_run_takes_as_few_batches_as_it_has_waves(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0)
    made = refed_dspy.synthesize(
        None, references(4), size=12, teacher=simulated(server), run_dir=tmp_path, max_cost=1.0, track=False
    )
    stats = server.stats()
    assert made.complete and (stats["batches"], stats["requests"], stats["batch_repeated"]) == (4, 0, 0)
    assert made.status["cost"] == pytest.approx(bill(server), rel=1e-9) and batched(tmp_path) == 0


def other_unit(run: RunRecorder) -> CallRecorder:
    return CallRecorder(run, Key("judge", "1", 0, "other"), rank=0, seed=1)


@pytest.mark.slow
async def test_a_batch_waits_for_calls_in_flight_elsewhere(tmp_path: Path, service: ScriptedService) -> None:
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        assert await ask(recorded, "first") == "first"  # what is imported late is there from now on
        service.calls.clear()
        judge = other_unit(recorded.recorder)
        number = await judge.reserve("judge", "there", 1)
        waiting = asyncio.ensure_future(ask(recorded, "q"))
        await asyncio.sleep(0.3)
        assert not service.calls, "what comes of the judge's call may want to join"
        judge.report(Call("judge", "there", "ok", 0.1, 1, 0, 1, 1, number))
        assert await waiting == "q"


@pytest.mark.slow
async def test_but_not_for_ever(tmp_path: Path, service: ScriptedService) -> None:
    async with recorded_teacher(tmp_path, teacher_config(service, batch={"quiet": 0.002, "poll": 0.02})) as recorded:
        judge = other_unit(recorded.recorder)
        judge.not_sent(await judge.reserve("judge", "there", 1))
        await judge.reserve("judge", "there", 1)
        assert await ask(recorded, "q") == "q"


@pytest.mark.parametrize("moment", ["collected", "uploaded"])
async def test_nothing_begins_once_the_run_is_stopping(tmp_path: Path, service: ScriptedService, moment: str) -> None:
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:

        def stop() -> None:
            recorded.recorder.stopping = True

        if moment == "uploaded":
            service.hooks["upload"] = [stop]
        asking = asyncio.ensure_future(ask_all(recorded, ["a", "b"]))
        if moment == "collected":
            await asyncio.sleep(0.01)
            stop()
        assert {type(answer) for answer in await asking} == {asyncio.CancelledError}
        assert recorded.recorder.budget.in_flight == recorded.recorder.budget.calls == 0
    assert not service.calls["create"] and not calls(tmp_path) and not states(tmp_path)


async def test_whoever_is_called_off_while_a_file_is_sent_is_not_in_the_batch(
    tmp_path: Path, service: ScriptedService
) -> None:
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        first, second = (asyncio.ensure_future(ask(recorded, text)) for text in "ab")

        def call_off() -> None:
            first.cancel()

        service.hooks["upload"] = [call_off]
        assert await second == "b"
    assert [asked(request) for lines in service.sent for request in lines] == ["b"]
    assert calls(tmp_path) == {("ok", COST): 1}


async def test_whoever_is_called_off_during_the_wait_leaves_a_call_that_the_next_one_takes(
    tmp_path: Path, service: ScriptedService
) -> None:
    service.ready = False
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        asking = asyncio.ensure_future(ask(recorded, "q"))
        await until(lambda: service.calls["look"])
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        budget = recorded.recorder.budget
        assert (budget.in_flight, budget.reserved, budget.calls) == (0, 0, 1) and budget.spent > COST
        service.ready = True
        assert await ask(recorded, "q") == "q"
        assert (budget.in_flight, budget.spent) == (0, COST)
    assert len(service.sent) == 1 and calls(tmp_path) == {("ok", COST): 1}


async def test_an_answer_that_came_as_its_waiter_was_called_off_is_kept(
    tmp_path: Path, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = BatchLog.arrived

    def call_off(log: BatchLog, answers: Mapping[int, str]) -> None:
        arrived(log, answers)
        asyncio.get_running_loop().call_soon(asking.cancel)

    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        asking: asyncio.Future[Any] = asyncio.ensure_future(ask_engine(recorded.teacher, recorded, "q"))
        with monkeypatch.context() as patch, pytest.raises(asyncio.CancelledError):
            patch.setattr(BatchLog, "arrived", call_off)
            await asking
    assert calls(tmp_path) == {("unused", COST): 1} and batched(tmp_path) == 1
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        assert recorded.recorder.budget.spent == COST
        assert await ask(recorded, "q") == "q"
    assert len(service.sent) == 1 and calls(tmp_path) == {("ok", COST): 1} and batched(tmp_path) == 0


# --- money


@pytest.mark.parametrize("fates", [[], ["ok", "expired", "cancelled", "token_limit"]])
@pytest.mark.slow
def test_a_cap_is_not_passed_by_a_cent(tmp_path: Path, server: SimulatedTeacher, fates: list[str]) -> None:
    server.control(batch_seconds=0, batch_fates=fates, batch_faults={"missing": 0.1, "nousage": 0.1, "malformed": 0.1})
    config = simulated(server, batch={"quiet": 0.03, "poll": 0.02})
    for cap in (0.004, 0.008):
        made = refed_dspy.synthesize(
            None, references(4), size=60, teacher=config, run_dir=tmp_path, max_cost=cap, track=False
        )
        assert not made.complete and made.reason and "max_cost" in made.reason
        assert bill(server) <= made.status["cost"] <= cap
    with Ledger.read(tmp_path) as ledger:
        answers = "SELECT stage, item FROM calls WHERE outcome IN ('ok', 'malformed')"
        asked_for = Counter(ledger.db.execute(answers).fetchall())
    repeats = sum(count - 1 for count in asked_for.values())
    assert server.stats()["batch_repeated"] == repeats > 0, "what was malformed is asked again, and nothing else"


@pytest.mark.slow
@pytest.mark.parametrize("cap", ["cost", "calls"])
async def test_calls_that_wait_for_money_go_in_the_next_batch(
    tmp_path: Path, service: ScriptedService, cap: str
) -> None:
    least = open_teacher(teacher_config(service)).least
    assert least is not None
    caps = Caps(max_calls=4) if cap == "calls" else Caps(max_cost=3 * least + 20 * COST)  # for a few at once
    async with recorded_teacher(tmp_path, teacher_config(service), caps) as recorded:
        answers = await ask_all(recorded, [f"q{n}" for n in range(20)])
        paid = sum(isinstance(answer, str) for answer in answers)
        assert {type(answer) for answer in answers} <= {str, CapReached}
        assert recorded.recorder.budget.in_flight == 0 and recorded.recorder.budget.spent == paid * COST
    assert sum(map(len, service.sent)) == paid
    assert paid == 4 if cap == "calls" else len(service.sent) > 1 and 3 < paid <= (caps.max_cost or 0) / COST


@pytest.mark.slow
def test_a_run_whose_time_is_up_leaves_its_batch_to_the_next_start(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=4)
    settings: dict[str, Any] = {"size": 4, "teacher": simulated(server), "run_dir": tmp_path, "track": False}
    made = refed_dspy.synthesize(None, references(2), **settings, max_minutes=2 / 60)
    assert made.reason and "max_minutes" in made.reason and batched(tmp_path)
    server.control(batch_seconds=0)
    assert refed_dspy.resume(tmp_path, max_minutes=10).complete
    assert server.stats()["batch_repeated"] == 0 and batched(tmp_path) == 0
    assert {how for how, _ in calls(tmp_path)} == {"ok"}
