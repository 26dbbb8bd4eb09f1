"""Files and Batches of a service that stumbles, lies or is away: what is asked again, and what is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from dspy.utils.exceptions import LMAuthError, LMBillingError

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import RunStopped
from refed_dspy.ledger.recorder import CallRecorder
from refed_dspy.ledger.statements import Key
from refed_dspy.programs.lm_errors import BatchOutOfReach, BatchRejected, NoBatches, NotAnApi, NotReached
from refed_dspy.teachers.batch.service import OLDER, BatchService, Lines, PendingRequest
from refed_dspy.teachers.batch.tracker import BatchTracker
from tests.support.said import Said
from tests.support.scripted_batches import (
    ScriptedService,
    ask,
    ask_all,
    batched,
    calls,
    client,
    recorded_teacher,
    refused,
    states,
    teacher_config,
    written,
)

pytestmark = pytest.mark.slow
PATIENCE = 0.4
"""Seconds that a service which is to be given up is asked again."""


def answer(status: int, message: str = "no", code: str | None = None) -> Callable[[], web.StreamResponse]:
    return lambda: refused(status, message, code)


def dropped() -> web.StreamResponse:
    raise ConnectionResetError  # aiohttp closes the connection without an answer, or with a 500


# --- making a batch


@pytest.mark.parametrize("lost", [answer(500), answer(429), dropped])
async def test_a_batch_whose_making_went_unanswered_is_found_and_not_made_twice(
    service: ScriptedService, lost: Callable[[], web.StreamResponse]
) -> None:
    service.hooks["created"] = [lost]
    async with client(teacher_config(service)) as there:
        made = await there.create(await there.upload(BytesIO(b"{}\n")), "nonce", time.time())
    assert made.id == "batch-0" and len(service.made) == 1


async def test_one_that_was_not_made_is_made_then(service: ScriptedService) -> None:
    service.hooks["create"] = [answer(500)]
    async with client(teacher_config(service)) as there:
        made = await there.create(await there.upload(BytesIO(b"{}\n")), "nonce", time.time())
        assert made.metadata == {"refed_batch": "nonce"}
    assert len(service.made) == 1 and service.calls["list"] >= 1


async def test_a_refusal_while_it_is_looked_for_does_not_say_that_there_is_none(
    said: Said, service: ScriptedService
) -> None:
    service.hooks["created"], service.hooks["list"] = [answer(500)], [answer(401, "revoked")]
    async with client(teacher_config(service)) as there:
        name = await there.upload(BytesIO(b"{}\n"))
        with said.by(BatchOutOfReach):
            await there.create(name, "nonce", time.time())
        batch = await there.find("nonce", time.time())
        assert batch is not None and batch.id == "batch-0"


async def test_a_service_that_keeps_no_metadata_knows_a_batch_by_its_file(service: ScriptedService) -> None:
    def forget() -> web.StreamResponse:
        service.made["batch-0"]["metadata"] = None
        return refused(500, "no")

    service.hooks["created"] = [forget]
    async with client(teacher_config(service)) as there:
        made = await there.create(await there.upload(BytesIO(b"{}\n")), "nonce", time.time())
    assert made.id == "batch-0" and len(service.made) == 1


async def test_a_batch_is_searched_through_pages_and_among_older_ones(service: ScriptedService) -> None:
    now = int(time.time())
    for n in range(3 * OLDER):
        age = 10 * 86_400 if n % 50 else 0  # not quite in order
        made = {"id": f"b{n}", "object": "batch", "status": "completed", "created_at": now - age}
        service.made[f"b{n}"] = {**made, "metadata": {"refed_batch": f"n{n}"}, "input_file_id": f"f{n}"}
    async with client(teacher_config(service)) as there:
        batch = await there.find("n1", now)
        assert batch is not None and batch.id == "b1" and service.calls["list"] == 3
        assert await there.find("none", now) is None
    for batch in service.made.values():
        batch["created_at"] = now - 10 * 86_400
    service.calls.clear()
    async with client(teacher_config(service)) as there:
        assert await there.find("none", now - 100) is None and service.calls["list"] == 1, "the rest is older still"


# --- what is asked again, and for how long


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
async def test_what_passes_is_asked_again(service: ScriptedService, status: int) -> None:
    service.hooks["upload"] = [answer(status)]
    async with client(teacher_config(service)) as there:
        assert await there.upload(BytesIO(b"one\ntwo\n")) == "file-0" and service.files["file-0"] == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, None, LMAuthError),
        (403, None, LMAuthError),
        (404, None, NoBatches),
        (405, None, NoBatches),
        (400, None, BatchRejected),
        (413, None, BatchRejected),
        (429, "insufficient_quota", LMBillingError),
    ],
)
async def test_what_does_not_is_told_at_once(
    said: Said, service: ScriptedService, status: int, code: str | None, error: Any
) -> None:
    service.hooks["upload"] = [answer(status, "the reason", code)]
    async with client(teacher_config(service)) as there:
        with said.by(error):
            await there.upload(BytesIO(b"{}\n"))
    assert service.calls["upload"] == 1


@pytest.mark.parametrize(("status", "message"), [(404, "--give-up"), (400, "batches/x"), (503, "busy")])
async def test_a_batch_that_cannot_be_asked_about_is_not_taken_for_unpaid(
    service: ScriptedService, status: int, message: str
) -> None:
    service.hooks["look"] = [answer(status, "busy")] * 9
    async with client(teacher_config(service), PATIENCE) as there:
        await there.find("none", 0)
        with pytest.raises(BatchOutOfReach, match=message):
            await there.look("x")


async def test_an_endpoint_that_never_answered_is_not_waited_for(said: Said) -> None:
    config = TeacherConfig(model="odd/m", api_base="http://127.0.0.1:9/v1", mode="batch")
    async with client(config, patience=3600) as there:
        with said.by(NotReached):
            async with asyncio.timeout(60):  # a wait would last an hour
                await there.upload(BytesIO(b"{}\n"))


async def test_a_web_page_is_told_apart(said: Said, service: ScriptedService) -> None:
    page = web.Response(text="<html>Welcome</html>", content_type="text/html")
    service.hooks["upload"] = [lambda: page]
    async with client(teacher_config(service)) as there:
        with said.by(NotAnApi):
            await there.upload(BytesIO(b"{}\n"))


async def test_a_download_that_breaks_off_is_begun_again(server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0, batch_fates=["download_drop"])
    config = TeacherConfig(model="sim/m", api_base=server.base_url, mode="batch")
    request = {"model": "m", "messages": [{"role": "user", "content": "What is it?"}]}
    lines = [
        {"custom_id": f"call-{n}", "method": "POST", "url": "/v1/chat/completions", "body": request} for n in range(9)
    ]
    async with client(config) as there:
        made = await there.create(await there.upload(BytesIO(written(*lines))), "nonce", time.time())
        while (end := await there.look(made.id)).status != "completed":  # noqa: ASYNC110 — the service has no events
            await asyncio.sleep(0.01)
        came: dict[Any, int] = {}

        async def deliver(lines: Lines) -> None:
            came.clear()
            async for line in lines:
                came[line["custom_id"]] = came.get(line["custom_id"], 0) + 1

        await there.read(end.output_file_id, 9, deliver)
        assert came == {f"call-{n}": 1 for n in range(9)}, "the last time from the first line on"


# --- the tracker, when the service is away for longer than it waits


async def test_a_service_that_is_away_for_long_ends_the_run_and_the_next_start_goes_on(
    tmp_path: Path, service: ScriptedService
) -> None:
    """What the engine does, with less patience."""
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        engine = recorded.teacher.server
        log = recorded.recorder.batches
        patient = BatchService(engine.config, engine.route, patience=PATIENCE)
        unit = CallRecorder(recorded.recorder, Key("stage", "q", 0, "digest"), 0, 1)
        pending = PendingRequest(await unit.reserve(engine.model, engine.endpoint, 5, batched=True))
        pending.line = json.dumps(
            {"custom_id": f"call-{pending.number}", "body": {"messages": [{"content": "q"}]}}
        ).encode()
        service.hooks["look"] = [answer(503, "away")] * 20
        tracker = BatchTracker(engine.config.batch, patient, log, (engine.endpoint, engine.model))
        tracker.submit([pending])
        with pytest.raises(BatchOutOfReach, match="away"):
            await pending.answer
        unit.let_go(pending.number)
        assert states(tmp_path) == [None] and batched(tmp_path) == 1
        await tracker.aclose()
    service.hooks.clear()
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        engine, unit = (
            recorded.teacher.server,
            CallRecorder(recorded.recorder, Key("stage", "q", 0, "digest"), 0, 1),
        )
        number = unit.adopt(engine.endpoint, engine.model)
        assert number == 1
        adopted = PendingRequest(number, held=True)
        tracker = BatchTracker(
            engine.config.batch,
            BatchService(engine.config, engine.route),
            recorded.recorder.batches,
            (engine.endpoint, engine.model),
        )
        tracker.expect(adopted)
        assert json.loads(await adopted.answer)["status"] == 200
        await tracker.aclose()
    assert len(service.sent) == 1


async def test_out_of_reach_is_a_stop_that_loses_nothing(tmp_path: Path, service: ScriptedService) -> None:
    service.hooks["look"] = [answer(404)]
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        errors = await ask_all(recorded, ["a", "b"])
        assert {type(error) for error in errors} == {RunStopped}
    assert batched(tmp_path) == 2 and {how for how, _ in calls(tmp_path)} == {"sent"}
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        assert await ask_all(recorded, ["a", "b"]) == ["a", "b"]
    assert len(service.sent) == 1


async def test_a_key_that_is_revoked_during_the_wait_loses_nothing(
    said: Said, tmp_path: Path, service: ScriptedService
) -> None:
    service.hooks["look"] = [answer(401, "bad key")]
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        with said.by(RunStopped):
            await ask(recorded, "a")
    async with recorded_teacher(tmp_path, teacher_config(service)) as recorded:
        assert await ask(recorded, "a") == "a"
    assert len(service.sent) == 1


async def test_a_file_that_is_never_ready_is_given_up(said: Said, service: ScriptedService) -> None:
    pending = web.json_response({"id": "f", "object": "file", "status": "pending"})
    service.hooks["upload"] = [lambda: pending]
    async with client(teacher_config(service)) as there:
        there._patience = -1.0
        with said.by(NotReached):
            await there.upload(BytesIO(b"{}\n"))
