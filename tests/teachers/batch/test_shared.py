"""Batches beside each other: two engines of one model, pools, whoever cancels, and what is given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from refed_dspy import TeacherConfig
from refed_dspy.errors import RunStopped
from refed_dspy.ledger.batches import begun, named
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.ledger.statements import Key, reserved
from refed_dspy.programs.lm_errors import BatchOutOfReach, NotReached
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.batch.openai import OpenAIService
from refed_dspy.teachers.batch.service import PendingRequest
from refed_dspy.teachers.batch.tracker import BatchTracker
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.pool import Pool, PooledTeacher, members_of
from refed_dspy.teachers.progress import Progress
from refed_dspy.teachers.route import resolve
from tests.support.said import Said
from tests.support.scripted_batches import (
    COST,
    PATIENCE,
    BatchFiles,
    Line,
    ScriptedService,
    as_killed,
    ask,
    ask_all,
    ask_engine,
    batched,
    calls,
    client,
    one_start,
    pending,
    recorded_teacher,
    refused,
    running_at,
    spared,
    states,
    teacher_config,
    until,
    well,
    written,
)


@pytest.fixture
async def other() -> AsyncIterator[ScriptedService]:
    async with ScriptedService().open() as opened:
        yield opened


# --- two engines of one model in one folder


@pytest.mark.slow
async def test_two_engines_of_one_model_leave_each_others_batches_alone(
    tmp_path: Path, service: ScriptedService
) -> None:
    """The second begins while the first one's batch is being made, and is not there yet."""
    service.ready = False
    judge = open_teacher(teacher_config(service, temperature=0.0))
    async with (
        recorded_teacher(tmp_path / "run", teacher_config(service)) as recorded,
        running_at(recorded.ledger, recorded.recorder, judge) as beside,
    ):
        asking: list[asyncio.Future[str]] = []

        def begin() -> web.StreamResponse:
            asking.append(asyncio.ensure_future(ask(beside, "b")))
            return refused(503, "busy")

        service.hooks["create"] = [begin]
        asking.append(asyncio.ensure_future(ask(recorded, "a")))
        await until(lambda: len(service.made) == 2 and service.calls["look"] > 2)
        killed = as_killed(tmp_path / "run", tmp_path / "killed")
        assert batched(killed) == 2 and calls(killed).total() == 2, "neither is forgotten"
        service.ready = True
        assert set(await asyncio.gather(*asking)) == {"a", "b"}
        assert service.calls["download"] == 2, "each is fetched once"
    assert calls(tmp_path / "run") == {("ok", COST): 2} and states(tmp_path / "run") == ["completed"] * 2
    assert len(service.sent) == 2 and service.repeated == 0


@pytest.mark.slow
async def test_the_first_to_leave_does_not_take_the_others_batch_along(
    tmp_path: Path, service: ScriptedService
) -> None:
    service.ready = False
    judge = open_teacher(teacher_config(service, temperature=0.0))
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        async with running_at(recorded.ledger, recorded.recorder, judge) as beside:
            asking = asyncio.ensure_future(ask(beside, "b"))
            await until(lambda: service.calls["look"])
            waiting = asyncio.ensure_future(ask(recorded, "a"))
            await until(lambda: len(service.made) == 2)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        service.ready = True
        assert await waiting == "a"
        await until(lambda: states(tmp_path) == ["completed"] * 2)
    assert calls(tmp_path) == {("ok", COST): 1, ("unused", COST): 1}, "what the other asked is there for it"


async def test_the_last_to_leave_closes_every_connection(service: ScriptedService) -> None:
    config, names = teacher_config(service), ("endpoint", "model")
    log: Any = SimpleNamespace(trackers={}, under_way=lambda *_: ())
    services = [OpenAIService(config, resolve(config)) for _ in range(2)]
    tracker = log.trackers[names] = BatchTracker(config.batch, services[0], log, names)
    for joined in (*services, services[1]):
        assert await joined.exists()
        tracker.join(joined)
    for last in (False, False, True):
        assert all(there._connections._connector for there in services)
        assert log.trackers == {names: tracker}
        assert await tracker.leave() is last
    assert not any(there._connections._connector for there in services) and log.trackers == {}


# --- a pool


class Two:
    """A pool of two teachers in batches, the first of which answered before."""

    def __init__(self, folder: Path, first: ScriptedService, second: ScriptedService) -> None:
        self.folder = folder
        self.teachers = [open_teacher(teacher_config(first)), open_teacher(teacher_config(second, model="odd/other"))]

    async def ask(self, texts: Sequence[str]) -> list[Any]:
        with Ledger.create(self.folder) as ledger:
            begin_start(ledger)
            run = RunRecorder(ledger, Caps(), spent(ledger))
            recorded_teachers = {
                id(first): PooledTeacher(ledger, run, first, Progress(0), CallPolicy()) for first in self.teachers
            }
            members = members_of(recorded_teachers, time.monotonic)
            pool = Pool(
                [(members[id(answer)], weight) for answer, weight in zip(self.teachers, (1e9, 1e-9), strict=True)]
            )
            async with self.teachers[0].running() as answer, self.teachers[1].running() as two:
                for teacher, engine in zip(self.teachers, (answer, two), strict=True):
                    recorded_teachers[id(teacher)].engine = engine
                asking = (ask_engine(self.teachers[0], pool, text) for text in texts)
                answers = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), PATIENCE)
                run.stopping = True
            run.group.close()
        return answers


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble", [(401, "bad key", None), (403, "no", None), (429, "out of money", "insufficient_quota")]
)
async def test_a_pool_does_not_ask_another_for_what_runs_in_a_batch(
    tmp_path: Path, service: ScriptedService, other: ScriptedService, trouble: Any
) -> None:
    pool = Two(tmp_path, service, other)
    assert await pool.ask(["first"]) == ["first"]
    service.hooks["look"] = [lambda: refused(*trouble)]
    errors = await pool.ask(["a", "b"])
    assert {type(error) for error in errors} == {RunStopped} and trouble[1] in str(errors[0])
    assert not other.calls and batched(tmp_path) == 2
    assert await pool.ask(["a", "b"]) == ["a", "b"] and not other.calls and len(service.sent) == 2
    assert calls(tmp_path) == {("ok", COST): 3}


@pytest.mark.slow
@pytest.mark.parametrize("at", ["upload", "create", "failed"])
async def test_a_pool_does_not_send_a_rejected_batch_to_a_dearer_teacher(
    said: Said, tmp_path: Path, service: ScriptedService, other: ScriptedService, at: str
) -> None:
    pool = Two(tmp_path, service, other)
    assert await pool.ask(["first"]) == ["first"]
    if at != "failed":
        service.hooks[at] = [lambda: refused(400, "too large")]
    else:
        service.status, service.errors = ["failed", "completed"], [[{"code": "x", "message": "too large"}], None]
    errors = await pool.ask(["a", "b"])
    assert {type(error) for error in errors} == {RunStopped}, errors
    said(str(errors[0]))
    assert not other.calls and calls(tmp_path) == {("ok", COST): 1} and batched(tmp_path) == 0
    assert await pool.ask(["a", "b"]) == ["a", "b"]


# --- the service


@pytest.mark.slow
async def test_a_file_that_cannot_be_sent_is_no_batch_under_way(service: ScriptedService) -> None:
    """Nothing is there yet, so another teacher may be asked."""
    service.hooks["upload"] = [lambda: refused(503, "busy")] * 50
    async with client(teacher_config(service), 0.3) as there:
        with pytest.raises(NotReached, match="busy"):
            await there.prepare(pending(b"{}\n"))


async def test_a_list_that_lags_is_looked_at_again(service: ScriptedService) -> None:
    empty = {"object": "list", "data": [], "has_more": False}
    async with client(teacher_config(service), 0.3) as there:
        await there.create(await there.prepare(pending(b"{}\n")), pending(b""), "nonce", time.time())
        service.hooks["list"] = [lambda: web.json_response(empty)]
        assert await there.find("nonce", time.time() - 120, 1) is None
        service.hooks["list"] = [lambda: web.json_response(empty)]
        batch = await there.find("nonce", time.time() - 5, 1)
        assert batch is not None and batch.name == "batch-0"


@pytest.mark.slow
async def test_what_an_earlier_start_sent_is_waited_for_where_the_endpoint_is_away(
    tmp_path: Path, service: ScriptedService
) -> None:
    with Ledger.create(tmp_path) as ledger:
        config = teacher_config(service).model_copy(update={"api_base": "http://127.0.0.1:9/v1"})
        key = Key("stage", "q", 0, "digest")
        ledger.commit([*reserved(1, key, "odd/m", "there", 5), *begun(1, "n", "there", "odd/m", [1]), *named(1, "b")])
        run = RunRecorder(ledger, Caps(), spent(ledger))
        tracker = BatchTracker(
            config.batch, OpenAIService(config, resolve(config), 0.3), run.batches, ("there", "odd/m")
        )
        pending = PendingRequest(1, held=True)
        tracker.expect(pending)
        asked = time.monotonic()
        with pytest.raises(BatchOutOfReach):
            await pending.answer
        assert time.monotonic() - asked >= 0.2
        await tracker.aclose()


def test_stragglers_are_no_more_at_once_than_was_said() -> None:
    for concurrency, most in ((None, 32), (4, 4), (1000, 32)):
        config = TeacherConfig(model="odd/m", api_base="http://there/v1", mode="mixed", concurrency=concurrency)
        assert open_teacher(config).server.alone.config.concurrency == most


# --- whoever cancels


@pytest.mark.slow
async def test_a_batch_that_is_cancelled_twice_ends_the_run(tmp_path: Path, service: ScriptedService) -> None:
    def none(lines: Sequence[Line]) -> BatchFiles:
        return None, written(*(spared(str(request["custom_id"]), "batch_cancelled") for request in lines))

    service.status, service.answers = ["cancelled", "cancelled", "completed"], [none, none, well]
    async with recorded_teacher(tmp_path, teacher_config(service, retries=5)) as recorded:
        errors = await ask_all(recorded, ["a", "b"])
        assert {type(error) for error in errors} == {RunStopped} and "cancelled" in str(errors[0])
        assert recorded.recorder.budget.in_flight == recorded.recorder.budget.calls == 0
    assert states(tmp_path) == ["cancelled"] * 2 and not calls(tmp_path)
    assert await one_start(tmp_path, service, ["a", "b"]) == ["a", "b"]
