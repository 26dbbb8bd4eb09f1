"""The books of a run: each attempt is written down before it is sent and settled when it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from refed_dspy.errors import RunStopped
from refed_dspy.ledger.batch_log import LedgerBatches
from refed_dspy.ledger.budget import Budget, Caps
from refed_dspy.ledger.group_commit import GroupCommit
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recording import Attempt, BatchLog
from refed_dspy.ledger.spending import Spent
from refed_dspy.ledger.statements import Key, Statement, booked, not_sent, reserved
from refed_dspy.records import Call, dollars

CALLS_A_SAMPLE = 2.2
"""Where the program does not say: two, and a share of what is asked once for a reference."""
SOME = 10
"""Settled calls that tell what a call costs."""
log = logging.getLogger("refed_dspy")


class RunBooks:
    """What all units of one start share: the budget, and the way into the ledger."""

    def __init__(self, ledger: Ledger, caps: Caps, before: Spent, calls_a_sample: float = CALLS_A_SAMPLE) -> None:
        self.calls_a_sample = calls_a_sample
        self.group = GroupCommit(ledger)
        self.budget = Budget(caps, before.cost, before.calls)
        self.batches = LedgerBatches(self.group, self.budget, lambda: self.stopping)
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


class UnitBooks:
    """The `Books` of one unit of work. `unwritten` are its good calls: they are committed with the answer."""

    def __init__(self, run: RunBooks, key: Key, rank: int, seed: int) -> None:
        self.run, self.key, self.rank = run, key, rank
        self.seed: int | None = seed
        self.calls: list[Call] = []
        self.unwritten: list[Call] = []
        self._worst: dict[int, int] = {}

    @property
    def stopping(self) -> bool:
        return self.run.stopping

    async def reserve(self, attempt: Attempt) -> int:
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
        if number:
            self.run.budget.give_back(self._worst.pop(number))
            if not self.run.batches.left(number):
                self.run.group.post(not_sent(number))

    def let_go(self, number: int) -> None:
        if number:
            worst = self._worst.pop(number)
            self.run.budget.settle(worst, worst)
            self.run.batches.hold(number)

    @property
    def batches(self) -> BatchLog:
        return self.run.batches

    def adopt(self, endpoint: str, model: str) -> int | None:
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
        self.run.group.post(booked(self.key, self.take()))

    def take(self) -> Sequence[Call]:
        """The calls still to be written, handed over to whoever writes them."""
        calls, self.unwritten = self.unwritten, []
        return calls
