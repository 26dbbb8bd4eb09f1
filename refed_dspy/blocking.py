"""Run a coroutine to its end from ordinary code, also where an event loop already runs (a notebook)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
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
    loop = asyncio.new_event_loop()
    outcome: Future[T] = Future()
    task: list[asyncio.Task[T]] = []

    async def main() -> T:
        task.append(asyncio.ensure_future(work))
        return await task[0]

    def target() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                outcome.set_result(runner.run(main()))
            except BaseException as error:  # noqa: BLE001 — raised again in the caller's thread
                outcome.set_exception(error)

    # The copied context carries dspy.context's settings (LM, trace) into the thread.
    thread = Thread(target=copy_context().run, args=(target,), name="refed")
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        if task:
            loop.call_soon_threadsafe(task[0].cancel)
        thread.join()
        raise
    return outcome.result()
