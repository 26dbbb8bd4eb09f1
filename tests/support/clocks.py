"""Time in tests: a clock that stands still, an event loop in which hours pass in no time, and a wait with an end."""

from __future__ import annotations

import asyncio
import functools
import random
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

from refed_dspy.teachers.rate_limits import RateLimits


class Clock:
    """A clock that stands still until it is set forward."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def until(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until something of another thread or process has happened. What takes longer is taken to hang."""
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.005)


class JumpingSelector(selectors.SelectSelector):
    """Instead of waiting for the next timer it sets its loop's clock forward to it."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is not None:
            self.loop.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which hours pass in no time."""

    now = 1000.0

    def __init__(self) -> None:
        selector = JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def virtually(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main` in virtual time. A TimeoutError means that a task was stuck for a day."""

    async def bounded() -> None:
        async with asyncio.timeout(86_400):
            await main()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(bounded())


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """An asynchronous test that runs in virtual time."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        virtually(lambda: test(*arguments, **fixtures))

    return run


def virtual_limits(most: int = 64, *, requests: float | None = None, tokens: float | None = None) -> RateLimits:
    return RateLimits(most, requests, tokens, clock=asyncio.get_running_loop().time, rng=random.Random(0))


async def settle_down() -> None:
    """Let everything run that needs no time."""
    for _ in range(10):
        await asyncio.sleep(0)
