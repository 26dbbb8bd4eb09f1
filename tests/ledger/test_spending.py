"""Spending over several starts: what unfinished calls are charged, and how long a run has worked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from refed_dspy.errors import CapReached
from refed_dspy.ledger.batches import begun
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.candidates import evaluation_scored
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import Spent, begin_start, seconds_at_work, spent
from refed_dspy.ledger.statements import settled
from refed_dspy.records import PICO, Call
from tests.ledger.test_recorder import KEY, NOTHING, call, reserve, rows, unit
from tests.support.said import Said

BATCH = "INSERT INTO batches (id, nonce, endpoint, model, requests, created) VALUES"


async def test_calls_without_an_ending_are_charged_at_their_worst(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        recorder = unit(RunRecorder(ledger, Caps(), NOTHING))
        recorder.report(call(await reserve(recorder, 100), 30, "cut"))
        await reserve(recorder, 200)
        await reserve(recorder, None)
    with Ledger.create(tmp_path) as ledger:
        for _ in range(2):  # opened again, nothing changes
            begin_start(ledger)
            before = spent(ledger)
            assert (before.picodollars, before.calls, before.unpriced) == (230, 3, 1)
        assert [row[1] for row in rows(tmp_path)] == ["cut", "lost", "lost"]
        run = RunRecorder(ledger, Caps(max_cost=300), before)
        with pytest.raises(CapReached):
            await reserve(unit(run), 71)


def begin(ledger: Ledger, *starts: float) -> None:
    ledger.commit([("INSERT INTO starts (begun) VALUES (?)", (begun,)) for begun in starts])


def call_at(ledger: Ledger, created: float, seconds: float) -> None:
    columns = "key, stage, item, model, endpoint, outcome, seconds, created"
    row = ("k", "s", "i", "m", "e", "ok", seconds, created)
    ledger.commit([(f"INSERT INTO calls ({columns}) VALUES (?,?,?,?,?,?,?,?)", row)])


def answer_at(ledger: Ledger, created: float) -> None:
    ledger.commit([("INSERT INTO answers VALUES (?,'s','i',0,'{}',NULL,'e',?,NULL)", (str(created), created))])


def test_time_at_work_leaves_out_the_gaps_between_starts(ledger: Ledger) -> None:
    assert seconds_at_work(ledger) == 0
    begin(ledger, 1000, 50_000, 90_000)
    call_at(ledger, 1010, 20)
    answer_at(ledger, 1100)
    call_at(ledger, 50_010, 5.5)
    assert seconds_at_work(ledger) == pytest.approx(100 + 15.5), "nothing was written in the third start"


def test_time_at_work_of_a_start_ends_where_the_next_begins(ledger: Ledger) -> None:
    begin(ledger, 1000, 1060)
    call_at(ledger, 1050, 600)
    assert seconds_at_work(ledger) == pytest.approx(60)


def test_time_at_work_does_not_run_ahead_of_the_clock(ledger: Ledger) -> None:
    begun = time.time() - 10
    begin(ledger, begun)
    call_at(ledger, begun, 3600)
    assert seconds_at_work(ledger) <= time.time() - begun


async def test_a_call_that_a_later_start_took_over_began_when_that_began_to_wait(ledger: Ledger) -> None:
    run, began = RunRecorder(ledger, Caps(), NOTHING), time.time()
    old, new = [await reserve(unit(run)) for _ in range(2)]
    ledger.commit([("UPDATE calls SET created=1000 WHERE id=?", (old,))])
    ledger.commit(settled(KEY, [Call("m", "e", "ok", 5.0, number=old), Call("m", "e", "ok", 600.0, number=new)]))
    ledger.commit(settled(KEY, [Call("m", "e", "ok", 600.0)]))
    assert ledger.db.execute("SELECT created + seconds FROM calls").fetchall()[-1][0] <= time.time(), "it was added"
    created = [at for (at,) in ledger.db.execute("SELECT created FROM calls ORDER BY id")]
    assert began - 5 <= created[0] <= time.time() - 5 and created[1] >= began, "none began before it was reserved"


def test_a_batch_that_was_begun_is_work(ledger: Ledger) -> None:
    begin(ledger, 1000, 50_000)
    ledger.commit(
        [(f"{BATCH} (?, '{number}', 'e', 'm', 0, ?)", (number, at)) for number, at in ((1, 1030), (2, 50_002))]
    )
    assert seconds_at_work(ledger) == pytest.approx(32)


async def test_a_call_in_a_batch_is_still_on_its_way(tmp_path: Path, ledger: Ledger, run: RunRecorder) -> None:
    numbers = [await reserve(unit(run)) for _ in range(2)]
    ledger.commit(begun(1, "nonce", "endpoint", "model", numbers[:1]))
    began = time.time()
    begin_start(ledger)
    assert [row[1] for row in rows(tmp_path)] == ["sent", "lost"]
    assert began <= ledger.db.execute("SELECT begun FROM starts").fetchone()[0] <= time.time()


def test_what_people_are_told(said: Said) -> None:
    unpaid, paid = Spent(0, 0, 0, 5.0), Spent(PICO, 1200, 0, 0.0)
    said([str(total) for total in (unpaid, paid, Spent(PICO, 3, 1, 0.0), Spent(0, 3, 3, 0.0))])


async def test_a_folder_whose_costs_exceed_sqlites_integers_can_be_opened(ledger: Ledger) -> None:
    """As an earlier version wrote it, which believed any usage."""
    for number in (1, 2, 3):
        paid = Call("m", "e", "ok", 0.1, 10**9, 0, 10**9, 2**63 - 1, number)
        ledger.commit(settled(KEY, [paid]))
    assert spent(ledger).picodollars == pytest.approx(3 * 2**63) and spent(ledger).calls == 3
    assert ledger.paid_for(KEY.digest) == pytest.approx(3 * 2**63)
    reading = evaluation_scored("candidate", "example", "validation", 0.5, {}, spent(ledger).picodollars)
    ledger.commit(reading)
