"""Batches in the ledger: each statement and query concerns its own batch and its own calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from refed_dspy.ledger import batches
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Key, reserved, settled
from refed_dspy.records import Call

CALL = Call("model", "here", "ok", 0.5, 10, 0, 5, 30)


def key(number: int) -> Key:
    return Key("judge", str(number), 0, f"key {number}")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Calls 1 to 3 in batch 1, 4 and 5 in batch 2, at another endpoint; 6 in none. 2 and 5 are answered there."""
    with Ledger.create(tmp_path) as ledger:
        for number in range(1, 7):
            ledger.commit(reserved(number, key(number), "model", "here", 100 * number))
        ledger.commit(batches.begun(1, "first", "here", "model", [1, 2, 3]))
        ledger.commit(batches.begun(2, "second", "there", "model", [4, 5]))
        ledger.commit([("UPDATE batched SET answer='{}' WHERE call IN (2, 5)", ())])
        yield ledger


def outcomes(ledger: Ledger) -> dict[int, str]:
    return dict(ledger.db.execute("SELECT id, outcome FROM calls"))


def batched(ledger: Ledger) -> dict[int, int]:
    return dict(ledger.db.execute("SELECT call, batch FROM batched"))


def test_the_calls_that_wait_with_where_and_what_they_are_charged(ledger: Ledger) -> None:
    ledger.commit(settled(key(3), [replace(CALL, number=3)]))
    ledger.commit(batches.unused(replace(CALL, number=2, cost=None)))
    first, second, *others = batches.unsettled_calls(ledger)
    assert first == batches.UnsettledCall(1, "key 1", "here", "model", 100)
    assert (second.number, second.cost) == (2, 0), "its price is unknown"
    assert [(call.number, call.endpoint) for call in others] == [(4, "there"), (5, "there")]
    assert [batches.unsettled_calls(ledger, number) for number in (1, 3, 6)] == [[first], [], []]


def test_how_each_batch_stands(ledger: Ledger) -> None:
    ledger.commit([*batches.named(2, "batch_2"), *settled(key(1), [replace(CALL, number=1)])])
    ledger.commit(settled(key(4), [replace(CALL, number=4)]) + settled(key(5), [replace(CALL, number=5)]))
    first, second = batches.all_batches(ledger)
    assert [first[name] for name in ("id", "nonce", "endpoint", "name", "state", "requests", "calls", "arrived")] == [
        1, "first", "here", None, None, 3, 2, 1,
    ]  # fmt: skip
    assert [second[name] for name in ("id", "name", "requests", "calls", "arrived")] == [2, "batch_2", 2, 0, 0]
    assert batches.left_batches(ledger) == [first]
    assert [batches.numbers(ledger, batch) for batch in (1, 2, 3)] == [(1, 3), (4,), ()]


def test_a_batch_that_ends_keeps_its_answers_and_leaves_others_alone(ledger: Ledger) -> None:
    ledger.commit(batches.ended(1, "expired"))
    assert batched(ledger) == {2: 1, 4: 2, 5: 2}
    assert [(batch["state"], batch["ended"] is None) for batch in batches.all_batches(ledger)] == [
        ("expired", False),
        (None, True),
    ]


def test_a_row_can_be_written_again_as_it_was(ledger: Ledger) -> None:
    before = ledger.db.execute("SELECT * FROM calls ORDER BY id").fetchall()
    again = batches.row(ledger, 4)
    ledger.commit([("DELETE FROM calls WHERE id=4", ()), *again])
    assert ledger.db.execute("SELECT * FROM calls ORDER BY id").fetchall() == before
    ledger.commit(settled(key(4), [replace(CALL, number=4)]))
    assert batches.row(ledger, 4) == [] == batches.row(ledger, 7)


def test_what_nobody_asked_for_is_charged_what_it_cost(ledger: Ledger) -> None:
    ledger.commit(batches.unused(replace(CALL, number=2, cost=7)))
    columns = "id, outcome, cost, prompt_tokens, cached_tokens, completion_tokens"
    assert ledger.db.execute(f"SELECT {columns} FROM calls WHERE id < 4 ORDER BY id").fetchall() == [
        (1, "sent", 100, None, None, None),
        (2, "unused", 7, 10, 0, 5),
        (3, "sent", 300, None, None, None),
    ]


def test_what_is_given_up_stays_charged_and_its_answers_are_kept(ledger: Ledger) -> None:
    ledger.commit(settled(key(1), [replace(CALL, number=1)]))
    ledger.commit(batches.abandoned([1]))
    assert outcomes(ledger) == {1: "ok", 2: "unused", 3: "lost", 4: "sent", 5: "sent", 6: "sent"}
    assert batched(ledger) == {2: 1, 4: 2, 5: 2}
    given_up, under_way = (batch["state"] for batch in batches.all_batches(ledger))
    assert given_up and under_way is None
    assert ledger.db.execute("SELECT cost FROM calls WHERE id=3").fetchone() == (300,)
    ledger.commit([*batches.ended(2, "expired"), *batches.abandoned([1, 2])])
    assert [batch["state"] for batch in batches.all_batches(ledger)] == [given_up, "expired"]
    assert outcomes(ledger)[5] == "unused"
