"""Batches in the ledger: the statements that write them, and the queries for those whose calls still wait."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import SENT, UNUSED, Statement
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
