"""The session: the teachers and judge of one folder at work, asked through its ledger, under one budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TypeVar

import dspy

from refed_dspy.concurrency import few_collections, keep_running
from refed_dspy.errors import (
    CapReached,
    LedgerLost,
    NothingKept,
    RowError,
    RunStopped,
    TeacherError,
    TeacherRefused,
    WrongCode,
)
from refed_dspy.jobs.traces import Traces, callbacks_but_mlflows
from refed_dspy.jobs.work import CapsLeft, Start, refuse_small_cap
from refed_dspy.ledger.batches import left_batches
from refed_dspy.ledger.statements import Statement
from refed_dspy.programs.adapter import checked_adapter
from refed_dspy.programs.asking import with_roles
from refed_dspy.programs.fast_path import Engine
from refed_dspy.teachers.pool import Pool, PooledTeacher, members_of
from refed_dspy.teachers.progress import Progress
from refed_dspy.teachers.recorded import RecordedTeacher, recorded_lm

T = TypeVar("T")
# DSPy settings for thousands of calls: history and traces would grow with each, and a warning come with each.
LEAN = {
    "disable_history": True,
    "trace": None,
    "max_trace_size": 0,
    "track_usage": False,
    "warn_on_type_mismatch": False,
}


class Session:
    """A folder's models at work under one budget: role → model. The first one answers, unless a stage asks for another
    role (`programs.asking.as_role`)."""

    def __init__(self, start: Start) -> None:
        work, before = start.work, start.caps_left.before
        self.start, self.ledger, self.models = start, start.ledger, work.models
        self.progress = Progress(
            start.size,
            start.ledger.kept(),
            picodollars=before.picodollars,
            unpriced=before.unpriced,
            priced=all(model.price is not None for model in work.models.values()),
            unit=work.unit,
        )
        pool_setup = work.pool_setup(start.ledger)
        recorded_class = RecordedTeacher if pool_setup is None else PooledTeacher
        of_model: dict[int, RecordedTeacher] = {}  # one per model, even in two roles: equal questions are one call
        for role, model in self.models.items():
            if id(model) not in of_model:
                of_model[id(model)] = recorded_class(
                    self.ledger, start.recorder, model, self.progress, work.policy, start.reused_from, role
                )
        self.recorded_teachers = {role: of_model[id(model)] for role, model in self.models.items()}
        self._engines: dict[str, Engine] = dict(self.recorded_teachers)
        self._main: Engine = self.first
        if pool_setup is not None:
            members = members_of(of_model, pool_setup.clock)
            self._main = pool_setup.router(members)
            self._engines = {role: Pool([(members[id(model)], 1.0)]) for role, model in self.models.items()}
        self.traces = Traces(work.traced)
        self.cap_reached: CapReached | None = None
        """What ended the work at a cap, or None."""

    @property
    def first(self) -> RecordedTeacher:
        return next(iter(self.recorded_teachers.values()))

    @property
    def _each_once(self) -> Iterable[RecordedTeacher]:
        return dict.fromkeys(self.recorded_teachers.values())

    @property
    def answered(self) -> bool:
        """Whether any model answered in this start, so that something was paid for."""
        return any(recorded.failures.paid for recorded in self.recorded_teachers.values())

    @property
    def grace(self) -> float:
        """Seconds that calls in flight get to finish when the work must end."""
        return self.start.caps_left.grace

    def affordable(self) -> int | None:
        """How many more samples or rows the caps allow, at least one; None: no cap will be reached."""
        worst = max(model.least or 0 for model in self.models.values())
        return self.start.recorder.affordable(worst)

    @property
    def unanswered(self) -> int:
        """How many calls failed of the models that answered none."""
        return sum(recorded.failures.unanswered for recorded in self._each_once)

    async def commit(self, statements: Sequence[Statement]) -> None:
        """Write the statements of one unit, all or none. Returns once they are written."""
        await self.start.recorder.group.commit(statements)

    def post(self, statements: Sequence[Statement]) -> None:
        """Have the statements of one unit written, without waiting for it."""
        self.start.recorder.group.post(statements)

    async def for_each(
        self, items: Iterable[T], work: Callable[[T], Awaitable[None]], slots: int | None = None
    ) -> None:
        """`work` on every item, at most `slots` at once, as many as the first model takes; each that is done counts in
        `progress`.

        First come the items that need no call, since earlier starts paid for them: they are done, whatever ends the
        rest. So `work` may begin twice on an item, and must not keep anything of an item that it does not finish.

        Raises whatever `work` raises first; calls in flight then get the session's grace to be committed.
        """
        waiting = iter(await self._recalled(items, work) if self.ledger.has_answers() else items)

        async def counted(item: T) -> None:
            with self.traces.row(self.start.work.kind):
                await work(item)
            self.progress.keep()

        at_once = self.first.teacher.concurrency if slots is None else slots
        await keep_running(lambda: map(counted, waiting), at_once, self.stop, self.grace)

    async def _recalled(self, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> list[T]:
        """`work` on every item whose answers are all in the ledger. Returns the items that need a call."""
        unpaid, recorder = list[T](), self.start.recorder
        recorder.stopping = True  # a call that would have to be made is cancelled instead
        try:
            for item in items:
                try:
                    await work(item)
                    self.progress.keep()
                except asyncio.CancelledError:
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise
                    unpaid.append(item)
                await asyncio.sleep(0)  # nothing else in here waits, and Ctrl-C must get through
        finally:
            recorder.stopping = False
        del self.progress.moments[:]  # what earlier starts paid for says nothing of the pace
        return unpaid

    def stop(self) -> None:
        """The work must end: calls in flight may finish, none may begin."""
        self.start.recorder.stopping = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The models run inside the block and answer there. At a cap the block ends cleanly, and `cap_reached` says so.

        Where the time of `max_minutes` is used up already, recorded answers are returned and nothing is begun.

        Raises:
            ConfigError: a cap is below the worst case of the very first call.
            TeacherRefused: a model cannot be used with its settings, or failed on every call, and nothing was paid for.
            RunStopped: the same after the first answer, or a model failed too often.
        """
        recorder, remaining = self.start.recorder, self.start.caps_left
        recorder.out_of_time = remaining.over
        asked = [recorded.teacher for recorded in self._each_once]
        in_flight = sum(teacher.concurrency for teacher in asked if not teacher.batched)
        with few_collections(in_flight), self._with_hints(), self._until_a_cap(), recorder.closing():
            async with AsyncExitStack() as stack:
                await self._start(stack, remaining)
                roles = {role: recorded_lm(self.models[role], engine) for role, engine in self._engines.items()}
                main = recorded_lm(self.first.teacher, self._main)
                callbacks = callbacks_but_mlflows()
                stack.enter_context(dspy.context(lm=main, adapter=checked_adapter(), callbacks=callbacks, **LEAN))
                stack.enter_context(with_roles(roles))
                yield

    async def _start(self, stack: AsyncExitStack, remaining: CapsLeft) -> None:
        """Start each model once, and the time that is left, unless there is none."""
        if remaining.over:
            return
        for recorded in self._each_once:
            engine = await stack.enter_async_context(recorded.teacher.running())
            recorded.engine = self.traces.engine(engine, recorded.teacher.model)
        await stack.enter_async_context(remaining.minutes())

    @contextmanager
    def _with_hints(self) -> Iterator[None]:
        """Turns the errors of the block into what `running` raises: they say how to go on."""
        try:
            yield
        except (NothingKept, LedgerLost):  # they do
            raise
        except (TeacherError, RunStopped, RowError) as error:  # a RowError here: the work cannot do without that row
            work, message = self.start.work, str(error)
            hint = (work.repair_hint if isinstance(error, WrongCode) else work.resume_hint)(self.ledger)
            if self.answered or left_batches(self.ledger) or not isinstance(error, TeacherError):
                raise RunStopped(message + "; " + hint) from error
            raise TeacherRefused(message + "; " + hint if self.ledger.has_answers() else message) from error

    @contextmanager
    def _until_a_cap(self) -> Iterator[None]:
        """Ends the block at a cap, which is then in `cap_reached`. Raises CapTooSmall where it allows no call at all,
        and as `check_useful` where the block ends and a model never answered."""
        budget = self.start.recorder.budget
        try:
            yield
        except CapReached as ended:
            refuse_small_cap(budget)
            self.cap_reached = budget.reached or ended
        for recorded in self._each_once:
            recorded.failures.check_useful()
