"""Batches in the ledger: the statements that write them, the queries for those whose calls still wait, and the log of
one start, so that the same question asked again waits for its batch and is not paid for twice."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from refed_dspy.ledger.budget import LEEWAY, Budget
from refed_dspy.ledger.group_commit import GroupCommit
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import SENT, UNUSED, Statement, not_sent
from refed_dspy.records import Call


@dataclass(frozen=True)
class UnsettledCall:
    """A call in a batch that is not settled: its number, its unit's key, where it was sent, and what it is charged."""

    number: int
    key: str
    endpoint: str
    model: str
    cost: int


_UNSETTLED = f"""
SELECT b.call, c.key, t.endpoint, t.model, coalesce(c.cost, 0) FROM batched b
JOIN calls c ON c.id = b.call JOIN batches t ON t.id = b.batch WHERE c.outcome IN ('{SENT}', '{UNUSED}')
"""


def unsettled_calls(ledger: Ledger, number: int | None = None) -> list[UnsettledCall]:
    """Every call that is in a batch, answered there or not, and is not settled, oldest first; or call `number` only."""
    if number is not None:
        return [UnsettledCall(*row) for row in ledger.db.execute(f"{_UNSETTLED} AND b.call = ?", (number,))]
    return [UnsettledCall(*row) for row in ledger.db.execute(f"{_UNSETTLED} ORDER BY b.call")]


_COLUMNS = ("id", "nonce", "endpoint", "model", "name", "state", "requests", "created", "ended")


def all_batches(ledger: Ledger) -> list[dict[str, Any]]:
    """Every batch: `id`, `nonce`, `endpoint`, `model`, `name` (its id at the service; None: not known to be there),
    `state` (how it ended; None: it has not), `requests`, `created` and `ended` (seconds since 1970), `calls`: how many
    of its calls are not settled, and `arrived`: how many of those have an answer."""
    calls = f"FROM batched b JOIN calls c ON c.id = b.call WHERE b.batch = t.id AND c.outcome = '{SENT}'"
    counts = f"(SELECT count(*) {calls}), (SELECT count(b.answer) {calls})"
    rows = ledger.db.execute(f"SELECT {', '.join(_COLUMNS)}, {counts} FROM batches t ORDER BY id")
    return [dict(zip((*_COLUMNS, "calls", "arrived"), row, strict=True)) for row in rows]


def left_batches(ledger: Ledger) -> list[dict[str, Any]]:
    """The batches, ended or not, with calls that still wait."""
    return [batch for batch in all_batches(ledger) if batch["calls"]]


def numbers(ledger: Ledger, batch: int) -> tuple[int, ...]:
    """The calls of a batch whose answers have not arrived."""
    rows = ledger.db.execute("SELECT call FROM batched WHERE batch=? AND answer IS NULL ORDER BY call", (batch,))
    return tuple(number for (number,) in rows)


def row(ledger: Ledger, number: int) -> list[Statement]:
    """The statement that would write again the row of a call that is on its way; empty if it has none."""
    columns = "id, key, stage, item, model, endpoint, outcome, seconds, reserved, cost, created"
    values = ledger.db.execute(f"SELECT {columns} FROM calls WHERE id=? AND outcome=?", (number, SENT)).fetchone()
    return [] if values is None else [(f"INSERT INTO calls ({columns}) VALUES (?,?,?,?,?,?,?,?,?,?,?)", tuple(values))]


def begun(batch: int, nonce: str, endpoint: str, model: str, calls: Sequence[int]) -> list[Statement]:
    """A batch that is about to be created at the service."""
    row = (batch, nonce, endpoint, model, len(calls), time.time())
    insert = "INSERT INTO batches (id, nonce, endpoint, model, requests, created) VALUES (?,?,?,?,?,?)"
    return [(insert, row), *(("INSERT INTO batched (call, batch) VALUES (?,?)", (call, batch)) for call in calls)]


def named(batch: int, name: str) -> list[Statement]:
    """The service took the batch, under this id."""
    return [("UPDATE batches SET name=? WHERE id=?", (name, batch))]


def ended(batch: int, how: str) -> list[Statement]:
    """The batch has ended; its calls without an answer are removed from it."""
    return [
        ("UPDATE batches SET state=?, ended=? WHERE id=?", (how, time.time(), batch)),
        ("DELETE FROM batched WHERE batch=? AND answer IS NULL", (batch,)),
    ]


def unused(call: Call) -> list[Statement]:
    """The cost of an answer that nobody asked for so far."""
    tokens = (call.prompt_tokens, call.cached_tokens, call.completion_tokens)
    update = "UPDATE calls SET outcome=?, prompt_tokens=?, cached_tokens=?, completion_tokens=?, cost=? WHERE id=?"
    return [(update, (UNUSED, *tokens, call.cost, call.number))]


def abandoned(batches: Iterable[int]) -> list[Statement]:
    """Batches that are no longer followed. A call without an answer stays charged at its worst case, since it may be
    billed. An answer that has arrived is kept for later questions, and a batch that has ended keeps its state."""
    statements: list[Statement] = []
    for batch in batches:
        settle = "UPDATE calls SET outcome=? WHERE outcome=? AND id IN (SELECT call FROM batched WHERE batch=? AND "
        statements += [
            (f"{settle} answer IS NULL)", ("lost", SENT, batch)),
            (f"{settle} answer IS NOT NULL)", (UNUSED, SENT, batch)),
            ("DELETE FROM batched WHERE batch=? AND answer IS NULL", (batch,)),
            ("UPDATE batches SET state='given up', ended=? WHERE id=? AND state IS NULL", (time.time(), batch)),
        ]
    return statements


@dataclass(frozen=True)
class SentBatch:
    """A batch that was begun, under `id` in the ledger. Only once it has a `name` is it known that the service took it.

    `nonce` is in the batch's metadata at the service: a process that was killed before it wrote down the name finds the
    batch by it. `numbers`: the calls in it that have no answer yet. `created`: seconds since 1970.
    """

    id: int
    nonce: str
    name: str | None
    created: float
    numbers: tuple[int, ...]


class BatchLog:
    """The batches of one ledger, during one start. A batch is written down before it is waited for, and its answers
    before they are read. What a method writes is on disk when it returns, except after `settle` and `tidy`."""

    def __init__(self, group: GroupCommit, budget: Budget, stopping: Callable[[], bool]) -> None:
        self._group, self._ledger, self._budget, self._stopping = group, group.ledger, budget, stopping
        self._waiting = 0
        self.trackers: dict[tuple[str, str], Any] = {}
        """The batch tracker of each (endpoint, model): one for all engines of a model, since whoever follows a batch
        settles its calls."""
        self._unclaimed: dict[int, UnsettledCall] = {}
        """Calls in batches that nobody waits for: an earlier start sent them, or the task that asked was cancelled."""
        self._numbers_of_key: defaultdict[str, list[int]] = defaultdict(list)
        for call in unsettled_calls(self._ledger):
            self._add_unclaimed(call)
        self._collected: dict[int, Sequence[Statement]] = {}
        """Calls that wait for their batch to begin → the statements that will write them down."""

    @property
    def in_flight_elsewhere(self) -> int:
        """Calls in flight that wait for no batch: what follows them may want to join one."""
        return self._budget.in_flight - self._waiting

    @property
    def stopping(self) -> bool:
        """Whether the run is ending, so that no batch may begin."""
        return self._stopping()

    def park(self, calls: int) -> None:
        """Count `calls` more that wait for a batch (fewer, where negative)."""
        self._waiting += calls

    def collected(self, number: int, row: Sequence[Statement]) -> None:
        """A call waits for its batch to begin. Until then it is not written down: if the process is killed, it has cost
        nothing."""
        self._collected[number] = row

    def withdraw(self, number: int) -> bool:
        """A call waits no longer for its batch to begin. Returns whether it still did, and was never written down."""
        return self._collected.pop(number, None) is not None

    def claim(self, key: str, endpoint: str, model: str) -> UnsettledCall | None:
        """An unsettled call with this key that was sent to the same model, or None. A call is claimed once."""
        for call in [self._unclaimed[number] for number in self._numbers_of_key.get(key, ())]:
            if (call.endpoint, call.model) == (endpoint, model):
                self._remove_unclaimed(call.number)
                self._budget.adopt(call.cost)
                return call
        return None

    def release(self, number: int) -> None:
        """Nobody waits any longer for a call in a batch. It can be claimed again."""
        for call in unsettled_calls(self._ledger, number):
            self._add_unclaimed(call)

    def _add_unclaimed(self, call: UnsettledCall) -> None:
        self._unclaimed[call.number] = call
        self._numbers_of_key[call.key].append(call.number)

    def _remove_unclaimed(self, number: int) -> UnsettledCall | None:
        if (call := self._unclaimed.pop(number, None)) is not None:
            self._numbers_of_key[call.key].remove(number)
        return call

    def under_way(self, endpoint: str, model: str) -> Sequence[SentBatch]:
        """The batches of earlier starts that have not ended."""
        return [
            SentBatch(row["id"], row["nonce"], row["name"], row["created"], numbers(self._ledger, row["id"]))
            for row in all_batches(self._ledger)
            if row["state"] is None and (row["endpoint"], row["model"]) == (endpoint, model)
        ]

    def begin(self, endpoint: str, model: str, nonce: str, numbers: Sequence[int]) -> SentBatch:
        """Write down that these calls are about to be sent as one batch."""
        (last,) = self._ledger.db.execute("SELECT coalesce(max(id), 0) FROM batches").fetchone()
        calls = [statement for number in numbers for statement in self._collected.pop(number, ())]
        self._ledger.commit([*calls, *begun(last + 1, nonce, endpoint, model, numbers)])
        (created,) = self._ledger.db.execute("SELECT created FROM batches WHERE id=?", (last + 1,)).fetchone()
        return SentBatch(last + 1, nonce, None, created, tuple(numbers))

    def named(self, batch: SentBatch, name: str) -> None:
        """The service took the batch under this name."""
        self._ledger.commit(named(batch.id, name))

    def arrived(self, answers: Mapping[int, str]) -> None:
        """Store answers (call number → JSON) until they are handed over, in this start or a later one."""
        update = "UPDATE batched SET answer=? WHERE call=?"
        self._ledger.commit([(update, (text, number)) for number, text in answers.items()])

    def ended(self, batch: SentBatch, how: str, free: Sequence[int] = (), lost: Sequence[int] = ()) -> None:
        """The batch has ended. Its calls without an answer are `free`, and are deleted until they are sent again, or
        `lost`: these may have been billed."""
        statements = ended(batch.id, how)
        waiting = set(numbers(self._ledger, batch.id))  # without calls that are in another batch by now
        for number in sorted(waiting.intersection(free)):
            # In the same transaction: if the process is killed right after it, they must not be charged.
            if (call := self._remove_unclaimed(number)) is not None:
                self._budget.forget(call.cost)
            elif again := row(self._ledger, number):
                self._collected[number] = again
            statements += not_sent(number)
        for number in sorted(waiting.intersection(lost)):
            if self._remove_unclaimed(number) is not None:
                statements.append(("UPDATE calls SET outcome='lost' WHERE id=?", (number,)))
        self._ledger.commit(statements)

    def answer(self, number: int) -> str | None:
        """The answer that arrived for a call, as JSON, or None."""
        row = self._ledger.db.execute("SELECT answer FROM batched WHERE call=?", (number,)).fetchone()
        return None if row is None else row[0]

    def unclaimed(self, endpoint: str, model: str) -> Mapping[int, str]:
        """The answers of this model's batches that arrived and that nobody asked for so far, by call number."""
        numbers = (call.number for call in self._unclaimed.values() if (call.endpoint, call.model) == (endpoint, model))
        answers = ((number, self.answer(number)) for number in numbers)
        return {number: text for number, text in answers if text is not None}

    def has_answered(self, endpoint: str, model: str) -> bool:
        """Whether this model ever answered a call, or an answer of it arrived in a batch, in any start."""
        arrived = (
            "SELECT 1 FROM batched b JOIN batches t ON t.id = b.batch"
            " WHERE b.answer IS NOT NULL AND t.endpoint = ? AND t.model = ?"
        )
        row = self._ledger.db.execute(arrived, (endpoint, model)).fetchone()
        return row is not None or (model, endpoint) in self._ledger.answered_models()

    def settle(self, call: Call) -> None:
        """Charge an unclaimed answer what it cost. It can still be claimed by a later start."""
        before = self._unclaimed[call.number]
        if 0 < LEEWAY * before.cost < (call.cost or 0):
            return  # not to be believed: it stays charged at its worst case
        self._unclaimed[call.number] = replace(before, cost=call.cost or 0)
        self._budget.recharge(before.cost, call.cost or 0)
        self._group.post(unused(call))

    def tidy(self) -> None:
        """Delete the answers that were handed over: they are in the table `answers`."""
        settled = f"SELECT id FROM calls WHERE outcome NOT IN ('{SENT}', '{UNUSED}')"
        self._group.post([(f"DELETE FROM batched WHERE call IN ({settled}) OR call NOT IN (SELECT id FROM calls)", ())])
