"""Batches in the ledger: each statement and query concerns its own batch and its own calls; and the log of batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from refed_dspy.ledger import batches
from refed_dspy.ledger.batches import BatchLog
from refed_dspy.ledger.budget import Budget, Caps
from refed_dspy.ledger.group_commit import GroupCommit
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.ledger.statements import Answer, Key, answered, reserved, settled
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


def test_what_is_given_up_stays_charged_and_its_answers_are_kept(ledger: Ledger) -> None:
    ledger.commit(settled(key(1), [replace(CALL, number=1)]))
    ledger.commit(batches.abandoned([1]))
    assert outcomes(ledger) == {1: "ok", 2: "unused", 3: "lost", 4: "sent", 5: "sent", 6: "sent"}
    assert batched(ledger) == {2: 1, 4: 2, 5: 2}
    given_up, under_way = (batch["state"] for batch in batches.all_batches(ledger))
    assert given_up and under_way is None
    assert ledger.db.execute("SELECT cost FROM calls WHERE id=3").fetchone() == (300,)
    ledger.commit(batches.ended(2, "expired"))
    assert batched(ledger) == {2: 1, 5: 2}, "whoever waits for 4 settles it"
    ledger.commit(batches.abandoned([1, 2]))
    assert [batch["state"] for batch in batches.all_batches(ledger)] == [given_up, "expired"]
    assert outcomes(ledger)[5] == "unused"


# --- the log: what is on disk when, who may have which call, and what the budget has of it

HERE = ("here", "model")


@contextmanager
def start(folder: Path) -> Iterator[tuple[Ledger, BatchLog, Budget]]:
    """A start of the run in `folder`: its ledger, batch log and budget."""
    with Ledger.create(folder) as ledger:
        begin_start(ledger)
        before, group = spent(ledger), GroupCommit(ledger)
        budget = Budget(Caps(), before.picodollars, before.calls)
        yield ledger, BatchLog(group, budget, lambda: False), budget
        group.close()


def collect(log: BatchLog, *numbers: int) -> None:
    """Calls that cost 100 times their number at most, each for a key of its own."""
    for number in numbers:
        log.collected(number, reserved(number, key(number), "model", "here", 100 * number))


async def test_a_call_is_on_disk_once_its_batch_is_begun_and_not_before(tmp_path: Path) -> None:
    with start(tmp_path) as (ledger, log, _):
        collect(log, 1, 2, 3)
        assert outcomes(ledger) == {}
        assert (log.withdraw(2), log.withdraw(2)) == (True, False)
        first, second = log.begin(*HERE, "a", [1]), log.begin(*HERE, "b", [3])
        assert outcomes(ledger) == {1: "sent", 3: "sent"} and batched(ledger) == {1: 1, 3: 2}
        assert (first.id, first.nonce, first.name, first.numbers) == (1, "a", None, (1,))
        assert (second.id, second.created) == ledger.db.execute("SELECT id, created FROM batches WHERE id=2").fetchone()
        assert not log.withdraw(1), "it is written down"


async def test_a_later_start_finds_what_is_under_way_and_claims_each_call_once(tmp_path: Path) -> None:
    with start(tmp_path) as (_, log, _):
        collect(log, 1, 2, 3, 4)
        batch = log.begin(*HERE, "a", [1, 2])
        log.named(batch, "batch_a")
        log.begin("there", "model", "b", [3])
        log.ended(log.begin(*HERE, "c", [4]), "completed")
        log.arrived({2: "{}"})
    with start(tmp_path) as (_, log, budget):
        (found,) = log.under_way(*HERE)
        assert found == replace(batch, name="batch_a", numbers=(1,))
        assert log.claim("key 1", "there", "model") is None is log.claim("key 1", "here", "other")
        assert (budget.spent, budget.reserved, budget.in_flight) == (100 + 200 + 300 + 400, 0, 0)
        claimed = log.claim("key 1", *HERE)
        assert claimed is not None and (claimed.number, claimed.cost) == (1, 100)
        assert (budget.spent, budget.reserved, budget.in_flight) == (900, 100, 1)
        assert log.claim("key 1", *HERE) is None, "somebody waits for it"
        log.release(1)
        assert log.claim("key 1", *HERE) == claimed and log.claim("key 9", *HERE) is None


async def test_of_two_calls_with_one_key_each_is_claimed(tmp_path: Path) -> None:
    with start(tmp_path) as (_, log, _):
        for number in (1, 2):
            log.collected(number, reserved(number, key(7), "model", "here", 100))
        log.begin(*HERE, "a", [1, 2])
    with start(tmp_path) as (_, log, _):
        claimed = [log.claim("key 7", *HERE) for _ in range(3)]
        assert [call and call.number for call in claimed] == [1, 2, None]


async def test_answers_wait_for_whoever_asks(tmp_path: Path) -> None:
    with start(tmp_path) as (_, log, _):
        collect(log, 1, 2, 3)
        log.begin(*HERE, "a", [1, 2])
        log.begin("there", "model", "b", [3])
        assert not log.has_answered(*HERE)
        log.arrived({1: "one", 3: "three"})
        assert (log.answer(1), log.answer(2), log.answer(9)) == ("one", None, None)
        assert log.has_answered(*HERE) and not log.has_answered("here", "other")
        assert log.unclaimed(*HERE) == {}, "this start waits for them"
    with start(tmp_path) as (ledger, log, _):
        assert (log.unclaimed(*HERE), log.unclaimed("there", "model")) == ({1: "one"}, {3: "three"})
        assert not log.has_answered("elsewhere", "model")
        ledger.commit(answered(key(9), Answer("{}"), "elsewhere", [replace(CALL, endpoint="elsewhere")]))
        assert log.has_answered("elsewhere", "model"), "outside a batch"


async def test_an_answer_that_nobody_asked_for_is_charged_what_it_cost_and_can_be_claimed(tmp_path: Path) -> None:
    with start(tmp_path) as (_, log, _):
        collect(log, 1)
        log.begin(*HERE, "a", [1])
        log.arrived({1: "one"})
    with start(tmp_path) as (_, log, budget):
        log.settle(replace(CALL, number=1, outcome="unused", cost=30))
        assert budget.spent == 30
    with start(tmp_path) as (ledger, log, budget):
        assert outcomes(ledger) == {1: "unused"} and budget.spent == 30
        log.settle(replace(CALL, number=1, outcome="unused", cost=None))
        assert budget.spent == 0
        log.settle(replace(CALL, number=1, outcome="unused", cost=20))
        assert budget.spent == 20, "its price was unknown, and is known now"
        log.settle(replace(CALL, number=1, outcome="unused", cost=None))
        claimed = log.claim("key 1", *HERE)
        assert claimed is not None and (claimed.cost, budget.reserved) == (0, 0)


async def test_calls_without_an_answer_are_free_or_lost_when_their_batch_ends(tmp_path: Path) -> None:
    """1 and 2 of an earlier start, which nobody asked for again; 3 and 4 of this one; 5 is in another batch by now."""
    with start(tmp_path) as (_, log, _):
        collect(log, 1, 2)
        log.begin(*HERE, "a", [1, 2])
    with start(tmp_path) as (ledger, log, budget):
        (batch,) = log.under_way(*HERE)
        collect(log, 3, 4, 5)
        ours, others = log.begin(*HERE, "b", [3, 4]), log.begin(*HERE, "c", [5])
        log.ended(batch, "expired", free=[1, 5], lost=[2])
        log.ended(ours, "expired", free=[3], lost=[4])
        assert outcomes(ledger) == {2: "lost", 4: "sent", 5: "sent"}, "who waits for 4 settles it"
        assert batched(ledger) == {5: others.id}
        assert (budget.spent, budget.calls) == (200, 1), "those of this start are settled by whoever made them"
        assert log.claim("key 1", *HERE) is None is log.claim("key 2", *HERE)
        again = log.begin(*HERE, "d", [3])
        assert outcomes(ledger)[3] == "sent" and batched(ledger)[3] == again.id, "it is written down as it was"


async def test_what_was_handed_over_is_deleted(tmp_path: Path) -> None:
    with start(tmp_path) as (ledger, log, _):
        collect(log, 1, 2)
        log.begin(*HERE, "a", [1, 2])
        log.arrived({1: "one", 2: "two"})
        ledger.commit(settled(key(1), [replace(CALL, number=1)]))
        ledger.commit([("INSERT INTO batched VALUES (9, 1, 'of a call that is gone')", ())])
        log.tidy()
    with Ledger.read(tmp_path) as ledger:
        assert batched(ledger) == {2: 1}


async def test_calls_elsewhere_are_those_that_wait_for_no_batch(tmp_path: Path) -> None:
    with start(tmp_path) as (_, log, budget):
        for _ in range(3):
            await budget.reserve(1)
        log.park(1)
        log.park(1)
        assert log.in_flight_elsewhere == 1
        log.park(-1)
        assert log.in_flight_elsewhere == 2
