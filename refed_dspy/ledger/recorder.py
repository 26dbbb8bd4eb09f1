"""The recorder of calls: each attempt is written down before it is sent, and settled when it ends.

A teacher finds its recorder in a context variable, so concurrent units of work need not pass one along and do not mix.
A program that is called outside a run has none, and its calls are not recorded.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import TypeAlias, TypeVar

from refed_dspy.concurrency import SingleFlight
from refed_dspy.errors import RefedError, RunStopped
from refed_dspy.ledger.batches import BatchLog
from refed_dspy.ledger.budget import Budget, Caps
from refed_dspy.ledger.group_commit import GroupCommit
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent
from refed_dspy.ledger.statements import Key, Statement, not_sent, recovered, reserved, settled
from refed_dspy.records import Call, dollars

CALLS_A_SAMPLE = 2.2
"""Unless the program says otherwise: two of the sample's, and a share of the calls that are made once per reference."""
ENOUGH_CALLS = 10
"""Settled calls from which the cost of a call is estimated."""
log = logging.getLogger("refed_dspy")


class RunRecorder:
    """What all units of one start share: the budget, and writing to the ledger."""

    def __init__(self, ledger: Ledger, caps: Caps, before: Spent, calls_a_sample: float = CALLS_A_SAMPLE) -> None:
        self.calls_a_sample = calls_a_sample
        self.group = GroupCommit(ledger)
        self.budget = Budget(caps, before.picodollars, before.calls)
        self.batches = BatchLog(self.group, self.budget, lambda: self.stopping or self.ended is not None)
        self.ended: RefedError | None = None
        """What ended the work: a call that waits for a slot or for money raises it instead of beginning."""
        self.stopping = False
        """Set when the run is ending: no further call may begin."""
        self.passing = ledger.passing_failures()
        """Keys of failures in the ledger that an answer removes."""
        self.failed_before = frozenset(self.passing)
        """Those of earlier starts."""
        self.single_flight = SingleFlight()
        """By key: equal requests at once are one."""
        self.out_of_time = False
        """Set if the time was used up before this start: only recorded answers are returned, and no call begins."""
        self.numbers = itertools.count(ledger.last_call() + 1)
        """The numbers of new calls."""

    def affordable(self, worst: int) -> int | None:
        """How many further samples fit under the caps, at least one; None without a cap.

        A call is assumed to cost what calls have cost so far, and before ENOUGH_CALLS its `worst` case.
        """
        budget, caps = self.budget, self.budget.caps
        bounds = []
        if caps.max_calls is not None:
            bounds.append((caps.max_calls - budget.calls) / self.calls_a_sample)
        if caps.max_cost is not None:
            settled = budget.calls - budget.in_flight
            cost = budget.spent / settled if settled >= ENOUGH_CALLS else worst
            bounds.append((caps.max_cost - budget.spent - budget.reserved) / max(1, cost * self.calls_a_sample))
        return max(1, int(min(bounds))) if bounds else None

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Have everything written when the block is left. Raises RunStopped where it could not be."""
        try:
            yield
        except BaseException:
            with suppress(RunStopped):  # the block's error is raised; a failed write has the same cause
                self.group.close()
            raise
        self.batches.tidy()
        self.group.close()

    def recovered(self, *keys: str) -> list[Statement]:
        """What removes the passing failures under `keys`: the request was answered after all."""
        stale = self.passing.intersection(keys)
        self.passing -= stale
        return [recovered(key) for key in sorted(stale)]


class CallRecorder:
    """Records the calls of one question. `unwritten` are its successful calls: they are committed with the answer."""

    def __init__(self, run: RunRecorder, key: Key, rank: int, seed: int) -> None:
        self.run, self.key, self.rank = run, key, rank
        self.seed = seed
        """The seed to send to a teacher that takes one."""
        self.calls: list[Call] = []
        self.unwritten: list[Call] = []
        self._worst: dict[int, int] = {}

    @property
    def stopping(self) -> bool:
        """Whether the run is ending, so that nothing further may be sent."""
        return self.run.stopping

    async def reserve(self, model: str, endpoint: str, worst: int | None, *, batched: bool = False) -> int:
        """Set aside and write down what a request about to be sent can cost at most, in picodollars (None: its price is
        unknown); returns its number. Waits while calls in flight may free some of the budget.

        A `batched` request is not sent before its batch is begun, and is written down together with it.

        Raises CapReached where it could pass a cap.
        """
        await self.run.budget.reserve(worst or 0, self.rank)
        number = next(self.run.numbers)
        self._worst[number] = worst or 0
        if self.stopping or self.run.ended is not None:  # the run began to end while it waited
            self.not_sent(number)
            raise self.run.ended or asyncio.CancelledError
        row = reserved(number, self.key, model, endpoint, worst)
        if batched:
            self.run.batches.collected(number, row)
            return number
        try:
            await self.run.group.commit(row)
        except BaseException:
            self.not_sent(number)
            raise
        return number

    def report(self, call: Call) -> None:
        """Settle an attempt that has ended."""
        worst = self._worst.pop(call.number)
        self.run.budget.settle(worst, call.cost or 0)
        if 0 < worst < (call.cost or 0):  # 0: the price is unknown, or an earlier start had sent the call
            log.warning(
                "%s cost %s, more than its worst case of %s: %s exceeds max_tokens or miscounts, so caps may be "
                "exceeded",
                call.model,
                dollars(call.cost or 0),
                dollars(worst),
                call.endpoint,
            )
        self.calls.append(call)
        self.unwritten.append(call)
        if call.outcome != "ok":
            self.write()

    def not_sent(self, number: int) -> None:
        """Give back the reservation of an attempt that was never sent."""
        if number:
            self.run.budget.give_back(self._worst.pop(number))
            if not self.run.batches.withdraw(number):
                self.run.group.post(not_sent(number))

    def let_go(self, number: int) -> None:
        """Wait no longer for a call in a batch. It stays charged, and the same question asked again adopts it."""
        if number:
            worst = self._worst.pop(number)
            self.run.budget.settle(worst, worst)
            self.run.batches.release(number)

    @property
    def batches(self) -> BatchLog:
        """The log of the run's batches."""
        return self.run.batches

    def adopt(self, endpoint: str, model: str) -> int | None:
        """The number of a call of this unit that was sent in a batch earlier and is not settled, or None."""
        call = self.run.batches.claim(self.key.digest, endpoint, model)
        if call is None:
            return None
        self._worst[call.number] = call.cost
        return call.number

    def rename_last(self, outcome: str) -> None:
        """Change the last call's outcome: its answer turned out to be unusable."""
        if self.unwritten:
            self.unwritten[-1] = self.calls[-1] = replace(self.unwritten[-1], outcome=outcome)

    def write(self) -> None:
        """Have the settled calls written now: there is no answer to write them with."""
        self.run.group.post(settled(self.key, self.take()))

    def take(self) -> Sequence[Call]:
        """The calls that are still to be written. The caller writes them."""
        calls, self.unwritten = self.unwritten, []
        return calls


class NullRecorder:
    """The recorder outside a run: every call is allowed, and nothing is recorded."""

    seed: int | None = None
    stopping = False
    batches = None

    async def reserve(self, model: str, endpoint: str, worst: int | None, *, batched: bool = False) -> int:  # noqa: ARG002
        return 0

    def report(self, call: Call) -> None:
        pass

    def not_sent(self, number: int) -> None:
        pass

    def let_go(self, number: int) -> None:
        pass

    def adopt(self, endpoint: str, model: str) -> int | None:  # noqa: ARG002
        return None


Recorder: TypeAlias = CallRecorder | NullRecorder
R = TypeVar("R", bound=Recorder)
current_recorder: ContextVar[Recorder] = ContextVar("refed_recorder", default=NullRecorder())  # noqa: B039 — no state
"""The recorder of the question being asked."""


@contextmanager
def calls_kept_by(recorder: R) -> Iterator[R]:
    """Have `recorder` reserve and settle every call inside the block."""
    token = current_recorder.set(recorder)
    try:
        yield recorder
    finally:
        current_recorder.reset(token)
