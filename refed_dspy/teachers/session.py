"""The models that work in one folder, each asked through its ledger, under one budget: what all long work sits at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import dspy

from refed_dspy.concurrency import few_collections
from refed_dspy.errors import CapReached, ConfigError, NothingKept, RowError, RunStopped, TeacherError, TeacherRefused
from refed_dspy.ledger.batches import left_batches
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import Answerer, answered_by, with_roles
from refed_dspy.records import dollars
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.caps import CapsLeft
from refed_dspy.teachers.pool import Pool, PooledTeacher, PoolMember, PoolSetup, members_of
from refed_dspy.teachers.recorded import CallPolicy, Progress, RecordedTeacher

# Silence and thrift while thousands of calls run: history and traces grow with each of them.
LEAN = {"disable_history": True, "trace": None, "max_trace_size": 0, "track_usage": False}


class Session:
    """Role → model, the first of which answers unless another is asked for (`programs.asking.asking`)."""

    def __init__(
        self,
        ledger: Ledger,
        recorder: RunRecorder,
        models: Mapping[str, Teacher],
        progress: Progress,
        policy: CallPolicy,
        depth: Mapping[str, int],
        lender: Ledger | None = None,
        assignment: PoolSetup | None = None,
    ) -> None:
        """`assignment`: who answers each stage, where that is not the first of `models` alone."""
        self.ledger, self.recorder, self.models, self.progress = ledger, recorder, models, progress
        recorded = RecordedTeacher if assignment is None else PooledTeacher
        of_model: dict[int, RecordedTeacher] = {}  # a model in two roles is asked by one: equal questions are one call
        for role, model in models.items():
            if id(model) not in of_model:
                of_model[id(model)] = recorded(ledger, recorder, model, progress, policy, depth, lender, role)
        self.recorded_teachers = {role: of_model[id(model)] for role, model in models.items()}
        self.answerers: dict[str, Answerer] = dict(self.recorded_teachers)
        self._answerer: Answerer = self.first
        self._members: dict[int, PoolMember] = {}
        if assignment is not None:
            self._members = members_of(of_model, assignment.clock)
            self._answerer = assignment.answerer(self._members)
            self.answerers = {role: Pool([(self._members[id(model)], 1.0)]) for role, model in models.items()}
        self.reached: CapReached | None = None
        """What ended the work at a cap, or None."""

    @property
    def first(self) -> RecordedTeacher:
        return next(iter(self.recorded_teachers.values()))

    @asynccontextmanager
    async def open(self, allowance: CapsLeft, again: Callable[[], str]) -> AsyncIterator[None]:
        """The models run inside the block and answer there. At a cap the block ends in order, and `reached` says so.

        Where the time of `max_minutes` was used up before, what is paid for is given back and nothing is begun.
        `again`: what is kept, and the command that goes on with the work, for messages.

        Raises:
            ConfigError: a cap is below the worst case of the very first call.
            TeacherRefused: before the first answer nothing was paid for: a model as given cannot be used.
            RunStopped: later.
        """
        self.recorder.over = allowance.over
        with few_collections(), self._told(again), self.recorder.closing():
            async with AsyncExitStack() as stack:
                running: dict[int, Any] = {}
                for model in self.models.values():
                    if id(model) not in running and not allowance.over:
                        running[id(model)] = await stack.enter_async_context(model.running())
                lms = {role: running.get(id(model)) for role, model in self.models.items()}
                if not allowance.over:
                    await stack.enter_async_context(allowance.minutes())
                first = next(iter(lms))
                stack.enter_context(dspy.context(adapter=dspy.settings.adapter or SchemaAdapter(), **LEAN))
                for place, member in self._members.items():
                    member.lm = running.get(place)
                stack.enter_context(dspy.context(lm=lms[first]))
                stack.enter_context(answered_by(self._answerer))
                stack.enter_context(with_roles({role: (self.answerers[role], lms[role]) for role in lms}))
                yield

    @contextmanager
    def _told(self, again: Callable[[], str]) -> Iterator[None]:
        try:
            yield
        except CapReached:
            reached = self.recorder.budget.reached
            if reached is not None and not self.recorder.budget.calls:
                raise ConfigError(
                    f"{reached.cap}: below the worst case of the first call, {dollars(reached.worst)}: raise it, or "
                    "lower the teacher's max_tokens"
                ) from None
            self.reached = reached or CapReached("max_minutes")
        except NothingKept:
            raise
        except (TeacherError, RunStopped, RowError) as error:  # a row's failure that nobody could do without
            begun = any(recorded.answered for recorded in self.recorded_teachers.values()) or left_batches(self.ledger)
            if isinstance(error, TeacherError) and not begun:
                told = f"{error}; {again()}" if self.ledger.has_answers() else str(error)
                raise TeacherRefused(told) from error
            raise RunStopped(f"{error}; {again()}") from error
