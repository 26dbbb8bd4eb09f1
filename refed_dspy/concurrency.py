"""Helpers for asyncio: running a coroutine from ordinary code, also in a notebook whose event loop runs already; tasks
that end together; limits on the work under way at once; and fewer garbage collections during a run. And a deadline for
what only a library's own blocking call can be asked."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from itertools import islice
from threading import Lock, Thread
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
LONG = 100_000
"""Characters. What reads a longer text does so in a thread: the event loop has other calls to attend to."""
_LOOKS = 0.05
"""Seconds between two looks whether a task was cancelled that blocks its own loop."""
_abandoned: list[Thread] = []
"""The threads that were left alone with what they had asked."""
_OBJECTS_A_CALL = 300
_gc_lock = Lock()
_gc_thresholds: list[tuple[int, int, int]] = []
"""The collector's thresholds from before each of the runs under way. The first are the process's own."""
GRACE = 1.5
"""Seconds that calls in flight may take to finish when the run must stop: their answers are paid for."""


class OutOfTime(TimeoutError):
    """There was no answer in time; `thread` is still waiting for one."""

    def __init__(self, seconds: float, thread: Thread) -> None:
        super().__init__(f"no answer within {seconds:.3g} s")
        self.thread = thread


def within(seconds: float, ask: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """What `ask` returns or raises, in a thread of its own. A library's own time-out holds for each byte that arrives,
    and so bounds nothing.

    Raises OutOfTime after so many `seconds`, and at once KeyboardInterrupt, or CancelledError in the task of an event
    loop: the thread is left alone then.
    """
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(ask(*arguments, **keywords))
        except BaseException as error:  # noqa: BLE001 — it is raised below
            outcome.set_exception(error)

    thread = Thread(target=copy_context().run, args=(work,), name="refed-asking", daemon=True)
    thread.start()
    end = time.monotonic() + seconds
    try:
        while not outcome.done() and (left := end - time.monotonic()) > 0:
            wait([outcome], min(left, _LOOKS))
            if in_event_loop() and (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError  # Ctrl-C is no exception in asyncio's own thread
    finally:
        if not outcome.done():
            _abandoned.append(thread)
    if not outcome.done():
        raise OutOfTime(seconds, thread)
    return outcome.result()


def current_environ() -> dict[str, str]:
    """The environment's variables. `dict(os.environ)` raises KeyError where another thread removes one meanwhile."""
    return {name: value for name in list(os.environ) if (value := os.environ.get(name)) is not None}


def left_alone() -> bool:
    """Whether a thread was left alone that is at it still: Python's own end would wait for what it has begun."""
    return any(thread.is_alive() for thread in _abandoned)


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. If an event loop is running in this thread, `work` runs in another one, and this one waits.

    Ctrl-C cancels `work`, waits until it has cleaned up, and raises KeyboardInterrupt, with the message of the
    CancelledError that `work` ended by.
    """
    try:
        return _in_thread(work) if in_event_loop() else asyncio.run(work)
    except KeyboardInterrupt as interrupt:
        if isinstance(ended := interrupt.__context__, asyncio.CancelledError):
            raise KeyboardInterrupt(*ended.args) from None
        raise


class Turn:
    """One at a time, as with asyncio.Lock. But all who wait go on in one iteration of the loop, one after the other: a
    lock gives each an iteration of its own, which keeps answers that came together apart from then on."""

    def __init__(self) -> None:
        self._free = asyncio.Event()
        self._free.set()

    async def __aenter__(self) -> None:
        while not self._free.is_set():
            await self._free.wait()
        self._free.clear()

    async def __aexit__(self, *_: object) -> None:
        self._free.set()


async def aside(length: float, work: Callable[..., T], *arguments: Any) -> T:
    """`work(*arguments)`, in a thread if the text that it reads has a `length` above LONG.

    A cancellation waits for the thread and comes at the next await: what was paid for is here, and what the thread
    changes is nobody else's meanwhile.
    """
    if length <= LONG:
        return work(*arguments)
    thread = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
            task.cancel()
        return thread.result()


def in_event_loop() -> bool:
    """Whether an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that raises its first error as it is, not in an exception group. Its other tasks are cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
        return
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
    raise first from first.__cause__  # here, so that the group is no part of it: IPython prints what has one in plain


async def all_of(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of `coroutines`, which run concurrently. Raises as `together`."""
    async with together() as group:
        tasks = [group.create_task(coroutine) for coroutine in coroutines]
    return [task.result() for task in tasks]


@contextmanager
def few_collections(in_flight: int) -> Iterator[None]:
    """Collect garbage less often, and without the objects that exist already: it takes a tenth of a busy run's CPU, and
    a third with 16,000 calls in flight, whose objects no collection can free. They are freed without one."""
    with _gc_lock:
        if not _gc_thresholds:
            gc.freeze()
        _gc_thresholds.append(gc.get_threshold())
        gc.set_threshold(max(20_000, _OBJECTS_A_CALL * in_flight), *_gc_thresholds[0][1:])
    try:
        yield
    finally:
        with _gc_lock:
            before = _gc_thresholds.pop()
            if not _gc_thresholds:  # the last of several runs in this process
                gc.set_threshold(*before)
                gc.unfreeze()


def _in_thread(work: Coroutine[Any, Any, T]) -> T:
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()

    async def main() -> T:
        task = asyncio.ensure_future(work)
        started.set_result((asyncio.get_running_loop(), task))
        return await task

    with ThreadPoolExecutor(1, "refed") as thread:
        # The copied context carries dspy.context's settings (LM, trace) into the thread.
        outcome: Future[T] = thread.submit(copy_context().run, asyncio.run, main())
        try:
            wait([outcome])
        except KeyboardInterrupt as interrupt:
            loop, task = started.result()
            with suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(task.cancel)
            interrupt.__context__ = outcome.exception()  # as asyncio.run has it
            raise
    return outcome.result()


class SingleFlight:
    """Of those who would do the same thing at once, one does it; the others get its result, or its error."""

    def __init__(self) -> None:
        self._in_flight: dict[str, asyncio.Future[Any]] = {}

    def __contains__(self, key: str) -> bool:
        """Whether somebody is doing it."""
        return key in self._in_flight

    async def share(self, key: str, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns or raises. Where the one who does it is cancelled, the next one begins anew."""
        while (first := self._in_flight.get(key)) is not None:
            await asyncio.wait([first])
            if not first.cancelled():
                return cast(T, first.result())
        shared = self._in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            result = await work()
        except Exception as error:
            shared.set_exception(error)
            shared.exception()  # it is raised here; asyncio need not log it
            raise
        else:
            shared.set_result(result)
            return result
        finally:
            del self._in_flight[key]
            shared.cancel()  # unless it has a result


async def keep_running(
    refill: Callable[[], Iterator[Awaitable[None]]], at_once: int, stop: Callable[[], None], grace: float
) -> None:
    """Keep `at_once` pieces of work running for as long as `refill`, called whenever one has ended, gives any.

    Of each iterator only as many are taken as have room. Raises whatever a piece of work raises first: then, and where
    this is cancelled, `stop` is called, and those in flight get `grace` seconds before they are cancelled.
    """
    running: set[asyncio.Task[None]] = set()
    ended: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
    try:
        while True:
            for work in islice(refill(), at_once - len(running)):
                task = asyncio.ensure_future(work)
                task.add_done_callback(ended.put_nowait)
                running.add(task)
            if not running:
                return
            done = await ended.get()
            running.discard(done)
            done.result()
    except BaseException:
        stop()
        await _finish_or_cancel(running, grace)
        raise


async def _finish_or_cancel(running: set[asyncio.Task[None]], grace: float) -> None:
    """Let the `running` tasks finish for `grace` seconds, then cancel them, and wait until they have ended.

    Their exceptions are ignored: they have the same cause as the stop, which is being raised already.
    """
    if running:
        _, late = await asyncio.wait(running, timeout=grace)
        for task in late:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
