"""Files and Batches of a service that stumbles, lies or is away: what is asked again, and what is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from dspy.utils.exceptions import LMAuthError, LMBillingError

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import RunStopped
from refed_dspy.programs.lm_errors import BatchOutOfReach, BatchRejected, NoBatches, NotAnApi, NotReached
from refed_dspy.teachers.batch.http import OLDER
from refed_dspy.teachers.batch.service import Lines, open_service
from tests.support.said import Said
from tests.support.scripted_batches import (
    ScriptedService,
    batched,
    calls,
    client,
    one_start,
    pending,
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
@pytest.mark.parametrize("moment", ["create", "created"])
@pytest.mark.parametrize("metadata", [True, False])
async def test_a_batch_whose_making_went_unanswered_is_found_and_not_made_twice(
    service: ScriptedService, lost: Callable[[], web.StreamResponse], moment: str, metadata: bool
) -> None:
    """Made or not; where the service keeps no metadata, its file tells."""

    def lose() -> web.StreamResponse:
        for batch in service.made.values():
            batch["metadata"] = batch["metadata"] if metadata else None
        return lost()

    service.hooks[moment] = [lose]
    async with client(teacher_config(service)) as there:
        made = await there.create(await there.prepare(pending(b"{}\n")), pending(b""), "nonce", time.time())
    assert made.name == "batch-0" and len(service.made) == 1 and service.calls["list"] >= 1


async def test_a_refusal_while_it_is_looked_for_does_not_say_that_there_is_none(
    said: Said, service: ScriptedService
) -> None:
    service.hooks["created"], service.hooks["list"] = [answer(500)], [answer(401, "revoked")]
    async with client(teacher_config(service)) as there:
        name = await there.prepare(pending(b"{}\n"))
        with said.by(BatchOutOfReach):
            await there.create(name, pending(b""), "nonce", time.time())
        batch = await there.find("nonce", time.time(), 1)
        assert batch is not None and batch.name == "batch-0"


async def test_a_batch_is_searched_through_pages_and_among_older_ones(service: ScriptedService) -> None:
    now = int(time.time())
    for n in range(3 * OLDER):
        age = 10 * 86_400 if n % 50 else 0  # not quite in order
        made = {"id": f"b{n}", "object": "batch", "status": "completed", "created_at": now - age}
        service.made[f"b{n}"] = {**made, "metadata": {"refed_batch": f"n{n}"}, "input_file_id": f"f{n}"}
    async with client(teacher_config(service)) as there:
        batch = await there.find("n1", now, 1)
        assert batch is not None and batch.name == "b1" and service.calls["list"] == 3
        assert await there.find("none", now, 1) is None
    for each in service.made.values():
        each["created_at"] = now - 10 * 86_400
    service.calls.clear()
    async with client(teacher_config(service)) as there:
        assert await there.find("none", now - 100, 1) is None and service.calls["list"] == 1, "the rest is older still"


# --- what is asked again, and for how long


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
async def test_what_passes_is_asked_again(service: ScriptedService, status: int) -> None:
    service.hooks["upload"] = [answer(status)]
    async with client(teacher_config(service)) as there:
        assert await there.prepare(pending(b"one\ntwo\n")) == "file-0" and service.files["file-0"] == b"one\ntwo\n"


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
            await there.prepare(pending(b"{}\n"))
    assert service.calls["upload"] == 1


@pytest.mark.parametrize(("status", "message"), [(404, "--give-up"), (400, "batches/x"), (503, "busy")])
async def test_a_batch_that_cannot_be_asked_about_is_not_taken_for_unpaid(
    service: ScriptedService, status: int, message: str
) -> None:
    service.hooks["look"] = [answer(status, "busy")] * 9
    async with client(teacher_config(service), PATIENCE) as there:
        await there.find("none", 0, 1)
        with pytest.raises(BatchOutOfReach, match=message):
            await there.look("x")


async def test_an_endpoint_that_never_answered_is_not_waited_for(said: Said) -> None:
    config = TeacherConfig(model="odd/m", api_base="http://127.0.0.1:9/v1", mode="batch")
    async with client(config, patience=3600) as there:
        with said.by(NotReached):
            async with asyncio.timeout(60):  # a wait would last an hour
                await there.prepare(pending(b"{}\n"))


async def test_a_web_page_is_told_apart(said: Said, service: ScriptedService) -> None:
    page = web.Response(text="<html>Welcome</html>", content_type="text/html")
    service.hooks["upload"] = [lambda: page]
    async with client(teacher_config(service)) as there:
        with said.by(NotAnApi):
            await there.prepare(pending(b"{}\n"))


async def test_a_download_that_breaks_off_is_begun_again(server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0, batch_fates=["download_drop"])
    config = TeacherConfig(model="sim/m", api_base=server.base_url, mode="batch")
    request = {"model": "m", "messages": [{"role": "user", "content": "What is it?"}]}
    lines = [
        {"custom_id": f"call-{n}", "method": "POST", "url": "/v1/chat/completions", "body": request} for n in range(9)
    ]
    async with client(config) as there:
        made = await there.create(await there.prepare(pending(written(*lines))), pending(b""), "nonce", time.time())
        while (end := await there.look(made.name)).status != "completed":  # noqa: ASYNC110 — the service has no events
            await asyncio.sleep(0.01)
        came: dict[Any, int] = {}

        async def deliver(lines: Lines) -> None:
            came.clear()
            async for line in lines:
                came[line["custom_id"]] = came.get(line["custom_id"], 0) + 1

        await there.read(end.files[0], 9, deliver)
        assert came == {f"call-{n}": 1 for n in range(9)}, "the last time from the first line on"


# --- the tracker, when the service is away for longer than it waits


@pytest.mark.parametrize("status", [404, 401, 503])
async def test_a_service_that_is_out_of_reach_ends_the_run_and_the_next_start_goes_on(
    said: Said, tmp_path: Path, service: ScriptedService, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """It does not know the batch, the key was revoked, or it is away for longer than anyone waits."""
    service.hooks["look"] = [answer(status, "bad")] * 20
    with monkeypatch.context() as patch:
        patch.setattr("refed_dspy.teachers.batch.engine.open_service", partial(open_service, patience=PATIENCE))
        errors = await one_start(tmp_path, service, ["a", "b"])
    assert {type(error) for error in errors} == {RunStopped}
    said(str(errors[0]))
    assert states(tmp_path) == [None] and batched(tmp_path) == 2 and {how for how, _ in calls(tmp_path)} == {"sent"}
    service.hooks.clear()
    assert await one_start(tmp_path, service, ["a", "b"]) == ["a", "b"]
    assert len(service.sent) == 1


async def test_a_file_that_is_never_ready_is_given_up(said: Said, service: ScriptedService) -> None:
    never = web.json_response({"id": "f", "object": "file", "status": "pending"})
    service.hooks["upload"] = [lambda: never]
    async with client(teacher_config(service)) as there:
        there._patience = -1.0
        with said.by(NotReached):
            await there.prepare(pending(b"{}\n"))
