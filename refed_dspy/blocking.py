"""Run a coroutine to its end from ordinary code, also where an event loop already runs (a notebook)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from contextvars import copy_context
from threading import Thread
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
