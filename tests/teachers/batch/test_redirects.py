"""A Batch API that sends its callers elsewhere: neither prompts nor keys go there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from refed_dspy import TeacherConfig
from refed_dspy.ledger.batches import left_batches
from refed_dspy.ledger.ledger import Ledger
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.scripted_batches import ScriptedService, client, one_start, pending

WIRES: dict[str, dict[str, Any]] = {
    "openai": {"model": "odd/m"},
    "azure-v1": {"model": "azure/m"},
    "azure": {"model": "azure/m", "api_version": "2024-10-21"},
}


@asynccontextmanager
async def answering(response: web.Response) -> AsyncIterator[tuple[str, list[str]]]:
    """The address of a server that answers everything with `response`, and the paths it was asked for."""

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return response

    asked: list[str] = []
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("wire", "status"), [*((wire, 307) for wire in WIRES), *(("openai", status) for status in (301, 302, 303, 308))]
)
async def test_a_redirect_to_another_host_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, wire: str, status: int
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    async with answering(web.Response()) as (stranger, asked_there):
        elsewhere = web.Response(status=status, headers={"Location": f"{stranger}/v1/files"})
        async with answering(elsewhere) as (endpoint, asked):
            config = TeacherConfig(api_base=endpoint, mode="batch", api_key_env=KEY_VARIABLE, **WIRES[wire])
            async with client(config, patience=0.2) as service:
                with pytest.raises(Exception, match=str(status)):
                    await service.prepare(pending(b"a prompt"))
    assert asked and not asked_there


@pytest.mark.parametrize("step", ["create", "look", "download"])
async def test_nor_is_one_in_the_middle_of_a_batch(
    tmp_path: Path, service: ScriptedService, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    async with answering(web.Response()) as (stranger, asked_there):
        headers = {"Location": f"{stranger}/v1/batches"}
        service.hooks[step] = [lambda: web.Response(status=307, headers=headers)] * 9
        [error] = await one_start(tmp_path, service, ["q"], api_key_env=KEY_VARIABLE)
    assert "(HTTP 307)" in str(error) and "api_base" in str(error)
    assert not asked_there
    with Ledger.read(tmp_path) as ledger:
        assert len(left_batches(ledger)) == (step != "create"), "a batch that was made is fetched later"
