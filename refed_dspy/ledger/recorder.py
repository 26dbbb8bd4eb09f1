"""The recorder of calls: each attempt is written down before it is sent, and settled when it ends.

A teacher finds the recorder of the work being done in a context variable, so concurrent work keeps apart without being
handed anything. A program called on its own has none, and nothing of it is recorded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from typing import TypeAlias, TypeVar

from refed_dspy.errors import RunStopped
from refed_dspy.ledger.attempt import Attempt
from refed_dspy.ledger.batch_log import BatchLog
from refed_dspy.ledger.budget import Budget, Caps
from refed_dspy.ledger.group_commit import GroupCommit
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent
from refed_dspy.ledger.statements import Key, Statement, not_sent, reserved, settled
from refed_dspy.records import Call, dollars

CALLS_A_SAMPLE = 2.2
"""Where the program does not say: two, and a share of what is asked once for a reference."""
SOME = 10
"""Settled calls that tell what a call costs."""
log = logging.getLogger("refed_dspy")


class RunRecorder:
    """What all units of one start share: the budget, and the way into the ledger."""

    def __init__(self, ledger: Ledger, caps: Caps, before: Spent, calls_a_sample: float = CALLS_A_SAMPLE) -> None:
        self.calls_a_sample = calls_a_sample
        self.group = GroupCommit(ledger)
        self.budget = Budget(caps, before.cost, before.calls)
        self.batches = BatchLog(self.group, self.budget, lambda: self.stopping)
        self.stopping = False
        """Set when the run is ending: a call that has not begun does not begin."""
        self.over = False
        """Set where the time was used up before: what is paid for is given back, and nothing else begins."""
        self._number = ledger.last_call()

    def affordable(self, worst: int) -> int | None:
        """How many samples more the caps can pay for, at least one; None without a cap.

        A call is taken for what calls cost so far, and, before there are some, for its `worst` case.
        """
        budget, caps = self.budget, self.budget.caps
        bounds = []
        if caps.max_calls is not None:
            bounds.append((caps.max_calls - budget.calls) / self.calls_a_sample)
        if caps.max_cost is not None:
            settled = budget.calls - budget.in_flight
            each = budget.spent / settled if settled >= SOME else worst
            bounds.append((caps.max_cost - budget.spent - budget.reserved) / max(1, each * self.calls_a_sample))
        return max(1, int(min(bounds))) if bounds else None

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Have everything written when the block is left. Raises RunStopped where it could not be."""
        try:
            yield
        except BaseException:
            with suppress(RunStopped):  # what ended the block is told; what could not be written comes of the same
                self.group.close()
            raise
        self.batches.tidy()
        self.group.close()

    def next_number(self) -> int:
        self._number += 1
        return self._number


class CallRecorder:
    """The recorder of one unit of work. `unwritten` are its good calls: they are committed with the answer."""

    def __init__(self, run: RunRecorder, key: Key, rank: int, seed: int) -> None:
        self.run, self.key, self.rank = run, key, rank
        self.seed: int | None = seed
        """What a teacher that takes a seed should send."""
        self.calls: list[Call] = []
        self.unwritten: list[Call] = []
        self._worst: dict[int, int] = {}

    @property
    def stopping(self) -> bool:
        """Whether the run is ending, so that nothing further may be sent."""
        return self.run.stopping

    async def reserve(self, attempt: Attempt) -> int:
        """Set aside and write down the attempt's worst case; returns its number. Waits while others may give back.

        Raises CapReached where it could pass a cap.
        """
        worst = attempt.worst or 0
        await self.run.budget.reserve(worst, self.rank)
        number = self._numbered(worst)
        if self.stopping:  # it waited, and the run is ending meanwhile
            self.not_sent(number)
            raise asyncio.CancelledError
        if attempt.batched:
            self.run.batches.collected(number, self._row(number, attempt))
            return number
        try:
            await self.run.group.commit(self._row(number, attempt))
        except BaseException:
            self.not_sent(number)
            raise
        return number

    def reserve_now(self, attempt: Attempt) -> int:
        """The same without an event loop: what does not fit at once is refused."""
        worst = attempt.worst or 0
        self.run.budget.reserve_now(worst)
        number = self._numbered(worst)
        self.run.group.ledger.commit(self._row(number, attempt))
        return number

    def _numbered(self, worst: int) -> int:
        number = self.run.next_number()
        self._worst[number] = worst
        return number

    def _row(self, number: int, attempt: Attempt) -> Sequence[Statement]:
        return reserved(number, self.key, attempt.model, attempt.endpoint, attempt.worst)

    def report(self, call: Call) -> None:
        """Settle an attempt that has ended."""
        if call.number:
            worst = self._worst.pop(call.number)
            self.run.budget.settle(worst, call.cost or 0)
            if 0 < worst < (call.cost or 0):  # without a known price, or one that a start adopted, it is 0
                log.warning(
                    "%s was charged %s, and its worst case was %s: %s does not keep to max_tokens, or miscounts; no "
                    "cap is safe with it",
                    call.model,
                    dollars(call.cost or 0),
                    dollars(worst),
                    call.endpoint,
                )
        else:  # seen only now: it gets its number in the books behind those that are reserved
            call = replace(call, number=self.run.next_number())
        self.calls.append(call)
        self.unwritten.append(call)
        if call.outcome != "ok":
            self.write()

    def not_sent(self, number: int) -> None:
        """Give back the reservation of an attempt that was never sent."""
        if number:
            self.run.budget.give_back(self._worst.pop(number))
            if not self.run.batches.left(number):
                self.run.group.post(not_sent(number))

    def let_go(self, number: int) -> None:
        """Wait no longer for a call that is in a batch. It stays charged, and whoever asks the same again adopts it."""
        if number:
            worst = self._worst.pop(number)
            self.run.budget.settle(worst, worst)
            self.run.batches.hold(number)

    @property
    def batches(self) -> BatchLog:
        """Where batches are written down."""
        return self.run.batches

    def adopt(self, endpoint: str, model: str) -> int | None:
        """The number of this unit's call that an earlier start sent in a batch and that is not settled; None: none."""
        found = self.run.batches.claim(self.key.digest, endpoint, model)
        if found is None:
            return None
        self._worst[found.number] = found.cost
        return found.number

    def rename_last(self, outcome: str) -> None:
        """The last call's answer turned out to be unusable."""
        if self.unwritten:
            self.unwritten[-1] = self.calls[-1] = replace(self.unwritten[-1], outcome=outcome)

    def write(self) -> None:
        """Have what is settled written without an answer: there is none to wait for."""
        self.run.group.post(settled(self.key, self.take()))

    def take(self) -> Sequence[Call]:
        """The calls still to be written, handed over to whoever writes them."""
        calls, self.unwritten = self.unwritten, []
        return calls


class NullRecorder:
    """That of a program called on its own: everything is allowed, nothing is kept."""

    seed: int | None = None
    stopping = False
    batches = None

    async def reserve(self, attempt: Attempt) -> int:  # noqa: ARG002
        return 0

    def reserve_now(self, attempt: Attempt) -> int:  # noqa: ARG002
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
_current: ContextVar[Recorder] = ContextVar("refed_recorder", default=NullRecorder())  # noqa: B039 — it has no state


@contextmanager
def recording(recorder: R) -> Iterator[R]:
    """Have `recorder` asked before, and told after, every call inside the block."""
    token = _current.set(recorder)
    try:
        yield recorder
    finally:
        _current.reset(token)


def current_recorder() -> Recorder:
    """That of the work being done."""
    return _current.get()
