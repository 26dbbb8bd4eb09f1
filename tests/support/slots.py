"""Slots of rate limits, for tests."""

from __future__ import annotations

import asyncio

import pytest

from refed_dspy.teachers.rate_limits import RateLimits, Slot
from tests.support.clocks import settle_down


async def at_once(waiting: asyncio.Task[Slot]) -> Slot:
    """The slot of a call that has nothing left to wait for."""
    await settle_down()
    if not waiting.done():
        waiting.cancel()
        pytest.fail("it still waits")
    return await waiting


async def slots(limits: RateLimits, count: int) -> list[Slot]:
    return [await at_once(asyncio.create_task(limits.acquire(1))) for _ in range(count)]


async def sent(limits: RateLimits, count: int) -> list[Slot]:
    together = await slots(limits, count)
    for slot in together:
        limits.sent(slot)
    return together
