"""The gateway's language models: copies, engines, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
import copy
from contextlib import suppress
from pathlib import Path

import dspy
import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.support.gateways import (
    Answering,
    ask_text,
    config,
    opened,
    requests,
    until,
)


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=4)
    return server


# --- copies and engines


@pytest.mark.slow
def test_copies_ask_through_the_same_gateway(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        program = dspy.ChainOfThought(Answering)
        program.set_lm(lm)
        copies = [copy.deepcopy(lm), copy.copy(lm), lm.copy(), gateway.lm("teacher"), program.deepcopy().get_lm()]
        assert len({ask_text(each) for each in [lm, *copies]}) == 1
        deep = copy.deepcopy(lm.copy(rollout_id=5, temperature=1.0))
        assert ask_text(deep) != ask_text(lm), "a copy of a rollout is that rollout"
    assert requests(server) == 2


def test_the_engines_settings_are_the_lms(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server, temperature=0.3, max_tokens=99)) as gateway:
        lm = gateway.lm("teacher")
        assert (lm.kwargs["temperature"], lm.kwargs["max_tokens"]) == (0.3, 99)
        assert lm.supports_response_schema and not lm.cache and lm.num_retries == 0


async def test_sync_and_async_calls_share_answers(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.1)
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        threads = [asyncio.to_thread(ask_text, lm) for _ in range(10)]
        answers = await asyncio.gather(*threads, *(lm.acall("What is the tide?") for _ in range(10)))
        assert {a if isinstance(a, str) else str(a[0]) for a in answers} == {answers[0]}
    assert requests(server) == 1


async def test_who_leaves_early_spoils_nothing(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.3)
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        leaves, stays = (asyncio.create_task(lm.acall("What is the tide?")) for _ in range(2))
        await asyncio.to_thread(until, lambda: requests(server) == 1)
        leaves.cancel()
        with suppress(asyncio.CancelledError):
            await leaves
        assert (await stays)[0]
        alone = asyncio.create_task(lm.acall("What is the ebb?"))
        await asyncio.to_thread(until, lambda: requests(server) == 2)
        alone.cancel()
        with suppress(asyncio.CancelledError):
            await alone
        await asyncio.to_thread(until, lambda: server.stats()["answered"] == 2)
        await lm.acall("What is the ebb?")
    assert requests(server) == 2, "what nobody waits for any more is paid for, so it is kept"
