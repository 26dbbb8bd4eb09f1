"""What is asked of the coordinator, as its actor answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from refed_dspy.plugins.cluster.coordinator import CoordinatorActor

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_that_comes_with_the_answer_is_not_lost(turns: int) -> None:
    answer = Future[Any]()
    actor = SimpleNamespace(totals=SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: answer)))
    asked = asyncio.create_task(CoordinatorActor(actor, 5.0).ask("totals"))
    await asyncio.sleep(0)
    answer.set_result(1)
    for _ in range(turns):
        await asyncio.sleep(0)
    if asked.cancel():
        with pytest.raises(asyncio.CancelledError):
            await asked
