"""The session: the teachers and judge of one folder at work, asked through its ledger, under one budget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import dspy

from refed_dspy.concurrency import few_collections
from refed_dspy.errors import CapReached, ConfigError, NothingKept, RowError, RunStopped, TeacherError, TeacherRefused
from refed_dspy.ledger.batches import left_batches
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.programs.adapter import checked_adapter
from refed_dspy.programs.asking import with_roles
from refed_dspy.programs.fast_path import Engine
from refed_dspy.records import dollars
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.caps import CapsLeft
from refed_dspy.teachers.pool import Pool, PooledTeacher, PoolSetup, members_of
from refed_dspy.teachers.recorded import CallPolicy, Progress, RecordedTeacher
from refed_dspy.teachers.recorded_lm import recorded_lm

# DSPy settings for thousands of calls: history and traces would grow with each of them.
LEAN = {"disable_history": True, "trace": None, "max_trace_size": 0, "track_usage": False}


class Session:
    """A folder's models at work under one budget: role → model. The first one answers, unless a stage asks for another
    role (`programs.asking.as_role`)."""

    def __init__(
        self,
        ledger: Ledger,
        recorder: RunRecorder,
        models: Mapping[str, Teacher],
        progress: Progress,
        policy: CallPolicy,
        reused_from: Ledger | None = None,
        pool_setup: PoolSetup | None = None,
    ) -> None:
        """`reused_from`: the ledger of another run, whose answers count here too. `pool_setup`: who answers each stage,
        where that is not the first of `models` alone."""
        self.ledger, self.recorder, self.models, self.progress = ledger, recorder, models, progress
        recorded_class = RecordedTeacher if pool_setup is None else PooledTeacher
        of_model: dict[int, RecordedTeacher] = {}  # one per model, even in two roles: equal questions are one call
        for role, model in models.items():
            if id(model) not in of_model:
                of_model[id(model)] = recorded_class(
                    ledger, recorder, model, progress, policy=policy, reused_from=reused_from, role=role
                )
        self.recorded_teachers = {role: of_model[id(model)] for role, model in models.items()}
        self._engines: dict[str, Engine] = dict(self.recorded_teachers)
        self._main: Engine = self.first
        if pool_setup is not None:
            members = members_of(of_model, pool_setup.clock)
            self._main = pool_setup.router(members)
            self._engines = {role: Pool([(members[id(model)], 1.0)]) for role, model in models.items()}
        self.cap_reached: CapReached | None = None
        """What ended the work at a cap, or None."""

    @property
    def first(self) -> RecordedTeacher:
        return next(iter(self.recorded_teachers.values()))

    @asynccontextmanager
    async def open(self, remaining: CapsLeft, resume_hint: Callable[[], str]) -> AsyncIterator[None]:
        """The models run inside the block and answer there. At a cap the block ends cleanly, and `reached` says so.

        Where the time of `max_minutes` is used up already, recorded answers are returned and nothing is begun.
        `resume_hint`: what is kept, and the command that resumes the work, for messages.

        Raises:
            ConfigError: a cap is below the worst case of the very first call.
            TeacherRefused: a model cannot be used with its settings, and nothing was paid for.
            RunStopped: the same after the first answer.
        """
        self.recorder.out_of_time = remaining.over
        with few_collections(), self._translated_errors(resume_hint), self.recorder.closing():
            async with AsyncExitStack() as stack:
                await self._start(stack, remaining)
                roles = {role: recorded_lm(self.models[role], engine) for role, engine in self._engines.items()}
                main = recorded_lm(self.first.teacher, self._main)
                stack.enter_context(dspy.context(lm=main, adapter=checked_adapter(), **LEAN))
                stack.enter_context(with_roles(roles))
                yield

    async def _start(self, stack: AsyncExitStack, remaining: CapsLeft) -> None:
        """Start each model once, and the time that is left, unless there is none."""
        if remaining.over:
            return
        for recorded in dict.fromkeys(self.recorded_teachers.values()):
            lm = await stack.enter_async_context(recorded.teacher.running())
            recorded.engine = recorded.teacher.engine(lm)
        await stack.enter_async_context(remaining.minutes())

    @contextmanager
    def _translated_errors(self, resume_hint: Callable[[], str]) -> Iterator[None]:
        """Notes in `reached` the cap that ended the block, and turns other errors into what `open` raises."""
        try:
            yield
        except CapReached:
            reached = self.recorder.budget.reached
            if reached is not None and not self.recorder.budget.calls:
                raise ConfigError(
                    f"{reached.cap}: below the worst case of the first call, {dollars(reached.worst)}: raise it, or "
                    "lower the teacher's max_tokens"
                ) from None
            self.cap_reached = reached or CapReached("max_minutes")
        except NothingKept:
            raise
        except (
            TeacherError,
            RunStopped,
            RowError,
        ) as error:  # a RowError here is of a row that the work cannot do without
            begun = any(recorded.answered for recorded in self.recorded_teachers.values()) or left_batches(self.ledger)
            if isinstance(error, TeacherError) and not begun:
                message = f"{error}; {resume_hint()}" if self.ledger.has_answers() else str(error)
                raise TeacherRefused(message) from error
            raise RunStopped(f"{error}; {resume_hint()}") from error
