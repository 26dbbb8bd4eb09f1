"""Starts that are killed while their questions wait in a batch, and the starts that go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from tests.support.scripted_batches import (
    COST,
    PATIENCE,
    ScriptedService,
    as_killed,
    ask_all,
    batched,
    calls,
    recorded_teacher,
    refused,
    teacher_config,
)

TEXTS = [f"q{n}" for n in range(6)]


async def killed_at(
    moment: str, tmp_path: Path, service: ScriptedService, instead: web.StreamResponse | None = None
) -> Path:
    """The folder of a start that was killed as the service was asked for `moment` (see ScriptedService.hooks)."""
    killed = asyncio.get_running_loop().create_future()

    def kill() -> web.StreamResponse | None:
        killed.set_result(as_killed(tmp_path / "first", tmp_path / "killed"))
        return instead

    service.hooks[moment] = [kill]
    async with recorded_teacher(tmp_path / "first", teacher_config(service)) as recorded:
        asking = asyncio.ensure_future(ask_all(recorded, TEXTS))
        folder = await asyncio.wait_for(killed, PATIENCE)
        await called_off(asking)
    assert isinstance(folder, Path)
    return folder


async def killed_waiting(tmp_path: Path, service: ScriptedService) -> Path:
    """The folder of a start that was killed as it looked at its batch, which is under way."""
    return await killed_at("look", tmp_path, service, refused(503, "busy"))


async def called_off(asking: asyncio.Future[list[str | BaseException]]) -> None:
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def goes_on(folder: Path, service: ScriptedService, **settings: object) -> None:
    """The next start gets all answers, pays for each once, and leaves nothing open."""
    async with recorded_teacher(folder, teacher_config(service, **settings)) as recorded:
        assert await ask_all(recorded, TEXTS) == TEXTS
        assert recorded.recorder.budget.in_flight == recorded.recorder.budget.reserved == 0
        assert recorded.recorder.budget.spent == len(TEXTS) * COST and recorded.recorder.budget.calls == len(TEXTS)
    assert service.repeated == 0 and batched(folder) == 0
    assert calls(folder) == {("ok", COST): len(TEXTS)}
