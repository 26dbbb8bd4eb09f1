"""The log of a run's batches: which calls wait in them, so that whoever asks the same again waits and does not pay."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from refed_dspy.ledger import batches
from refed_dspy.ledger.attempt import SentBatch
from refed_dspy.ledger.batches import Held
from refed_dspy.ledger.budget import Budget
from refed_dspy.ledger.group_commit import GroupCommit
from refed_dspy.ledger.statements import Statement, not_sent
from refed_dspy.records import Call


class BatchLog:
    """The batches of one ledger, for one start: written down before they are waited for, and their answers before they
    are read. What is written here is on disk when the method returns."""

    def __init__(self, group: GroupCommit, budget: Budget, stopping: Callable[[], bool]) -> None:
        self._group, self._ledger, self._budget, self._stopping = group, group.ledger, budget, stopping
        self._parked = 0
        self.trackers: dict[tuple[str, str], Any] = {}
        """Who follows batches, by endpoint and model: one for all engines of a model, since whoever follows a batch
        settles it."""
        self._held: dict[int, Held] = {}
        """Calls in batches that nobody waits for: earlier starts sent them, or whoever asked was called off."""
        self._of_key: defaultdict[str, list[int]] = defaultdict(list)
        for one in batches.held(self._ledger):
            self._keep(one)
        self._collected: dict[int, Sequence[Statement]] = {}
        """Calls that wait for their batch to begin, and what is to be written of them then."""

    @property
    def elsewhere(self) -> int:
        """Calls in flight that wait for no batch: what comes of them may want to join one."""
        return self._budget.in_flight - self._parked

    @property
    def stopping(self) -> bool:
        """Whether the run is ending, so that no batch may begin."""
        return self._stopping()

    def park(self, calls: int) -> None:
        """So many more calls wait for a batch (fewer, where negative)."""
        self._parked += calls

    def collected(self, number: int, row: Sequence[Statement]) -> None:
        """A call waits for its batch to begin. Until then nothing is written of it: a kill costs nothing."""
        self._collected[number] = row

    def left(self, number: int) -> bool:
        """A call waits no longer. Returns whether it still did, and so was never written down."""
        return self._collected.pop(number, None) is not None

    def claim(self, key: str, endpoint: str, model: str) -> Held | None:
        """A call that is this one, sent to the same place and not settled. It is claimed once."""
        for one in [self._held[number] for number in self._of_key.get(key, ())]:
            if (one.endpoint, one.model) == (endpoint, model):
                self._drop(one.number)
                self._budget.adopt(one.cost)
                return one
        return None

    def hold(self, number: int) -> None:
        """A call in a batch is waited for no longer. It can be claimed again."""
        for one in batches.held(self._ledger, number):
            self._keep(one)

    def _keep(self, one: Held) -> None:
        self._held[one.number] = one
        self._of_key[one.key].append(one.number)

    def _drop(self, number: int) -> Held | None:
        if (one := self._held.pop(number, None)) is not None:
            self._of_key[one.key].remove(number)
        return one

    def under_way(self, endpoint: str, model: str) -> Sequence[SentBatch]:
        """The batches of earlier starts that have not ended."""
        return [
            SentBatch(one["id"], one["nonce"], one["name"], one["created"], batches.numbers(self._ledger, one["id"]))
            for one in batches.open_batches(self._ledger)
            if (one["endpoint"], one["model"]) == (endpoint, model)
        ]

    def begin(self, endpoint: str, model: str, nonce: str, numbers: Sequence[int]) -> SentBatch:
        """Write down that these calls are about to be sent as one batch."""
        (last,) = self._ledger.db.execute("SELECT coalesce(max(id), 0) FROM batches").fetchone()
        calls = [statement for number in numbers for statement in self._collected.pop(number, ())]
        self._ledger.commit([*calls, *batches.begun(last + 1, nonce, endpoint, model, numbers)])
        (created,) = self._ledger.db.execute("SELECT created FROM batches WHERE id=?", (last + 1,)).fetchone()
        return SentBatch(last + 1, nonce, None, created, tuple(numbers))

    def named(self, batch: SentBatch, name: str) -> None:
        """The service took the batch, and calls it so."""
        self._ledger.commit(batches.named(batch.id, name))

    def arrived(self, answers: Mapping[int, str]) -> None:
        """Keep answers (call number → JSON) until they are handed over, at whichever start that is."""
        self._ledger.commit(batches.arrived(answers))

    def ended(self, batch: SentBatch, how: str, free: Sequence[int] = (), lost: Sequence[int] = ()) -> None:
        """The batch has ended. Its calls without an answer: those that are `free`, of which nothing stays written
        unless they begin again, and those that are `lost`, which may have been billed."""
        statements = batches.ended(batch.id, how)
        waiting = set(batches.numbers(self._ledger, batch.id))  # what is in another batch by now is that one's
        for number in sorted(waiting.intersection(free)):
            # In the same transaction: a kill right after it must not find them charged.
            if (one := self._drop(number)) is not None:
                self._budget.forget(one.cost)
            elif row := batches.row(self._ledger, number):
                self._collected[number] = row
            statements += not_sent(number)
        for number in sorted(waiting.intersection(lost)):
            if self._drop(number) is not None:
                statements += batches.lost(number)
        self._ledger.commit(statements)

    def answer(self, number: int) -> str | None:
        """What arrived for a call."""
        return batches.answer(self._ledger, number)

    def unclaimed(self, endpoint: str, model: str) -> Mapping[int, str]:
        """What arrived of these batches, and nobody asked for so far."""
        theirs = (one.number for one in self._held.values() if (one.endpoint, one.model) == (endpoint, model))
        answers = ((number, self.answer(number)) for number in theirs)
        return {number: text for number, text in answers if text is not None}

    def has_answered(self, endpoint: str, model: str) -> bool:
        """Whether this model ever answered here, at whichever start."""
        return batches.has_answered(self._ledger, endpoint, model)

    def settle(self, call: Call) -> None:
        """What an unclaimed answer cost. It can still be claimed by a later start."""
        one = self._held[call.number]
        self._held[call.number] = replace(one, cost=call.cost or 0)
        self._budget.recharge(one.cost, call.cost or 0)
        self._group.post(batches.unused(call))

    def tidy(self) -> None:
        """Forget what was handed over."""
        self._group.post(batches.tidied())
