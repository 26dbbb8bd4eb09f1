"""Long work in ordinary code: a coroutine run to its end, also where an event loop already runs (a notebook); and
tasks that end together."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from threading import Lock, Thread
from typing import Any, TypeVar

T = TypeVar("T")


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Where this thread's loop is running, another thread runs it and this one waits.

    Ctrl-C cancels `work`, waits until it has put its things in order, and raises KeyboardInterrupt.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    return _in_thread(work)


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises its first error as it is. What else was running is cancelled, not left behind."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


_collector = Lock()
_sparing: list[tuple[int, int, int]] = []


@contextmanager
def few_collections() -> Iterator[None]:
    """Spare the garbage collector what exists already, and look less often: it takes a tenth of a busy run's CPU."""
    with _collector:
        if not _sparing:
            _sparing.append(gc.get_threshold())
            gc.freeze()
            gc.set_threshold(20_000, *_sparing[0][1:])
        else:
            _sparing.append(_sparing[0])
    try:
        yield
    finally:
        with _collector:
            before = _sparing.pop()
            if not _sparing:  # the last of several runs in this process
                gc.set_threshold(*before)
                gc.unfreeze()


def _in_thread(work: Coroutine[Any, Any, T]) -> T:
    outcome: Future[T] = Future()
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()

    async def main() -> T:
        task = asyncio.ensure_future(work)
        begun.set_result((asyncio.get_running_loop(), task))
        return await task

    def target() -> None:
        try:
            outcome.set_result(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001 — raised again in the caller's thread
            outcome.set_exception(error)

    # The copied context carries dspy.context's settings (LM, trace) into the thread.
    thread = Thread(target=copy_context().run, args=(target,), name="refed")
    thread.start()
    try:
        # Not thread.join(): interrupted, it takes the thread for ended before Python 3.13.
        wait([outcome])
    except KeyboardInterrupt:
        loop, task = begun.result()
        loop.call_soon_threadsafe(task.cancel)
        wait([outcome])
        raise
    finally:
        thread.join()
    return outcome.result()


GRACE = 2.0
"""Seconds that calls in flight are given to land when the run must stop: their answers are paid for."""


async def land(running: set[asyncio.Task[None]], grace: float) -> None:
    """Let what is in flight finish for a moment, then cancel it, and wait until it is gone.

    Whatever it raises comes of the same stop, which is being raised already.
    """
    if running:
        _, late = await asyncio.wait(running, timeout=grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
