"""The gateway: requests from any thread, answered by recorded teachers on one event loop.

DSPy's optimizers and its evaluation call programs, judges and reflection models from many threads. Each request is
handed to the gateway's loop, where the recorded teacher of its role answers it: from the folder's ledger, or paid for
under one budget. So no recorded answer is paid for again, neither in one process nor by the next one after a kill: that
one replays the recorded answers until it is where the first one ended.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from anyio.from_thread import start_blocking_portal

from refed_dspy.errors import CapReached, RowError, RunStopped, TeacherError, TeacherRefused
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.statements import Answer, Key, Statement
from refed_dspy.programs.fast_path import Engine
from refed_dspy.programs.lm_errors import LMCapReached
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.progress import Progress
from refed_dspy.teachers.recorded import Asked, RecordedLM, RecordedTeacher, recorded_lm_on

T = TypeVar("T")


class Gateway:
    """Takes requests from any thread and has them answered on its event loop. Open it with `open_gateway`."""

    def __init__(
        self,
        ledger: Ledger,
        recorder: RunRecorder,
        teachers: Mapping[str, Teacher],
        seed: int,
        reused_from: Ledger | None = None,
    ) -> None:
        """On the loop that is running. `reused_from`: the ledger of other work whose answers count here, too."""
        self.reused_from = reused_from
        self.ledger, self.recorder, self.loop = ledger, recorder, asyncio.get_running_loop()
        self.models = {role: self.recorded_teacher(role, teacher, seed) for role, teacher in teachers.items()}
        """Role → its recorded teacher."""
        self.opened = self.loop.time()
        self.deadline: float | None = None
        self.cap_reached = ""
        """The cap after which no call begins, or an empty text."""
        self.closed = False
        self.stop_error: BaseException | None = None
        """The error that ends the work: no call begins after it."""
        self.unanswered = 0
        """How many requests had no answer so far."""
        self._submit_lock = threading.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        """What runs on the loop for other threads."""
        self._started = AsyncExitStack()
        """Ends the models."""

    def recorded_teacher(self, role: str, teacher: Teacher, seed: int) -> GatewayTeacher:
        """What answers for `teacher` in this role."""
        return GatewayTeacher(self, role, teacher, CallPolicy(seed))

    def lm(self, role: str) -> RecordedLM:
        """The language model of a role, for DSPy. It asks through this gateway."""
        model = self.models[role]
        return recorded_lm_on(
            self.loop, model.teacher, model, lambda request: self._run_on_loop(lambda: model.complete(request))
        )

    def write(self, statements: list[Statement]) -> None:
        """Have rows written, in this order. From any thread. Does nothing when the gateway is closed."""
        with self._submit_lock:
            if not self.closed:
                self.loop.call_soon_threadsafe(self.recorder.group.post, statements)

    async def start(self, teachers: Mapping[str, Teacher]) -> None:
        """Start the models: one Teacher object that serves several roles once."""
        async with AsyncExitStack() as stack:
            engines: dict[int, Engine] = {}
            for role, teacher in teachers.items():
                if id(teacher) not in engines:
                    engines[id(teacher)] = await stack.enter_async_context(teacher.running())
                self.models[role].engine = engines[id(teacher)]
            self.opened, self._started = self.loop.time(), stack.pop_all()

    def close(self) -> None:
        """Cancel what is in flight, release every thread that waits for it, and end the models. Not from its loop."""
        with self._submit_lock:
            self.closed = self.recorder.stopping = True
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result()

    async def _end(self) -> None:
        async with self._started:
            while self._tasks:
                for task in list(self._tasks):
                    task.cancel()
                await asyncio.sleep(0.01)
            self.recorder.group.close()

    def allow(self, caps: Caps, seconds: float | None = None) -> None:
        """Go on under other caps. `seconds` count from when the gateway was opened."""

        def change(_: Ledger) -> None:
            self.recorder.budget.allow(caps)
            self.deadline = None if seconds is None else self.opened + seconds
            self.cap_reached = ""

        self.read(change)

    def read(self, query: Callable[[Ledger], T]) -> T:
        """What `query` returns. Everything written before is in the ledger by then. Call it from another thread."""

        async def flush_and_query() -> T:
            self.recorder.group.flush()
            return query(self.ledger)

        return self._run_on_loop(flush_and_query).result()

    def _run_on_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run `work` on the event loop, in this context, to its end: an answer is paid for even where its caller has
        left, and others may wait for it. Raises LMCapReached once the gateway is closed."""

        future = Future[T]()

        def begin() -> None:
            task = self.loop.create_task(work())
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, future))

        with self._submit_lock:
            if self.closed:
                raise LMCapReached(CapReached("", reason="the work has ended: nothing is asked any more"))
            self.loop.call_soon_threadsafe(begin)
        return future

    def _ended(self, future: Future[T], task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()  # looked at: else asyncio would log it
        if task.cancelled():
            future.cancel()
        if not future.set_running_or_notify_cancel():  # its caller has left
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())

    def stop(self, error: BaseException) -> None:
        """Let no further call begin. `error` is what the work ends with."""
        self.stop_error = self.stop_error or error

    def raise_if_stopped(self) -> None:
        """Raises what ended the work; TeacherError or RunStopped also where a model failed on every call so far."""
        if self.stop_error is not None:
            raise self.stop_error
        for model in self.models.values():
            self.read(lambda _, model=model: model.failures.check_useful())  # type: ignore[misc]

    @property
    def elapsed(self) -> float:
        """Seconds since it was opened."""
        return self.loop.time() - self.opened

    def reach_cap(self, cap: str) -> None:
        """Let no further call begin: one could pass `cap`."""
        self.cap_reached = self.cap_reached or cap


class GatewayTeacher(RecordedTeacher):
    """The recorded teacher of a role behind a gateway. Where no further call may begin it raises CapReached, and
    whoever asks goes on with what it has."""

    def __init__(self, gateway: Gateway, role: str, teacher: Teacher, policy: CallPolicy) -> None:
        reused_from = gateway.reused_from
        super().__init__(gateway.ledger, gateway.recorder, teacher, Progress(0), policy, reused_from, role)
        self._gateway = gateway

    async def answer(self, asked: Asked) -> Answer:
        """As `RecordedTeacher.answer`. What nobody named a stage for is kept under the role."""
        if not asked.question.stage:
            asked = replace(asked, question=replace(asked.question, stage=self.role))
        return await super().answer(asked)

    async def ask(self, asked: Asked, key: Key) -> Answer:
        gateway = self._gateway
        if gateway.stop_error is not None:
            raise CapReached("", reason=f"the work is ending: {gateway.stop_error}")
        if gateway.cap_reached:
            raise CapReached(gateway.cap_reached)
        try:
            async with asyncio.timeout_at(gateway.deadline) as timer:
                return await super().ask(asked, key)
        except TimeoutError:
            if not timer.expired():
                raise
            gateway.reach_cap("max_minutes")
            raise CapReached("max_minutes") from None
        except CapReached as reached:
            gateway.reach_cap(reached.cap)
            raise
        except (TeacherError, RunStopped) as error:
            gateway.stop(error)
            raise
        except asyncio.CancelledError:  # it was waiting for its batch to be sent
            if gateway.stop_error is None or gateway.closed:
                raise
            raise CapReached("", reason=f"the work is ending: {gateway.stop_error}") from None

    def _note_shared(self, key: Key) -> None:
        """Who shared an answer is in no figure."""

    def _count_failure(self, stage: str, error: RowError) -> None:
        self._gateway.unanswered += not error.final
        super()._count_failure(stage, error)


G = TypeVar("G", bound=Gateway)


@contextmanager
def open_gateway(
    kind: type[G],
    ledger: Ledger,
    recorder: RunRecorder,
    teachers: Mapping[str, Teacher],
    seed: int,
    reused_from: Ledger | None = None,
) -> Iterator[G]:
    """A gateway to `teachers` (role → teacher), on an event loop in a thread of its own; closed after the block.

    Raises TeacherRefused for a TeacherError of the block before anything was paid for.
    """

    async def opened() -> G:
        gateway = kind(ledger, recorder, teachers, seed, reused_from)
        await gateway.start(teachers)
        return gateway

    try:
        with start_blocking_portal(name="refed-gateway") as portal:
            opening = portal.start_task_soon(opened)
            try:
                yield opening.result()
            finally:
                # After Ctrl-C, too: a model that is starting must be ended all the same.
                if opening.exception() is None:
                    opening.result().close()
    except TeacherError as error:
        if ledger.has_answers() or spent(ledger).picodollars:
            raise
        raise TeacherRefused(str(error)) from error
