"""The recorder of calls: what is on disk when, what unfinished calls are charged, and what a cancellation leaves."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import CapReached, RunStopped
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import CallRecorder, NullRecorder, RunRecorder, calls_kept_by, current_recorder
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.ledger.statements import Answer, Key, answered, failed, settled
from refed_dspy.records import Call
from tests.ledger.test_group_commit import BROKEN
from tests.support.said import Said

KEY = Key("response_generation", "1", 0, "digest")
NOTHING = Spent(0, 0, 0, 0.0)


def unit(run: RunRecorder) -> CallRecorder:
    return CallRecorder(run, KEY, rank=0, seed=1)


async def reserve(recorder: CallRecorder, worst: int | None = 100) -> int:
    return await recorder.reserve("model", "endpoint", worst)


def call(number: int, cost: int | None = 30, outcome: str = "ok") -> Call:
    return Call("model", "endpoint", outcome, 0.5, 10, 0, 5, cost, number)


def rows(folder: Path) -> list[tuple[int, str, int | None, int | None]]:
    """(id, outcome, reserved, cost) of every call, as another connection sees them."""
    with Ledger.read(folder) as ledger:
        return ledger.db.execute("SELECT id, outcome, reserved, cost FROM calls ORDER BY id").fetchall()


# --- the rows of a call


async def test_a_settled_call_is_charged_its_cost_together_with_its_answer(
    tmp_path: Path, ledger: Ledger, run: RunRecorder
) -> None:
    recorder = unit(run)
    number = await reserve(recorder, 100)
    assert rows(tmp_path) == [(number, "sent", 100, 100)], "its worst case, before it may be sent"
    recorder.report(call(number, cost=30))
    assert (run.budget.spent, run.budget.reserved) == (30, 0)
    assert rows(tmp_path) == [(number, "sent", 100, 100)], "a good call waits for its answer"
    await run.group.commit(answered(KEY, Answer("{}"), "endpoint", recorder.take()))
    assert rows(tmp_path) == [(number, "ok", 100, 30)]
    tokens = "SELECT prompt_tokens, cached_tokens, completion_tokens, seconds FROM calls"
    assert ledger.db.execute(tokens).fetchone() == (10, 0, 5, 0.5)


async def test_a_failed_call_is_written_without_an_answer_to_wait_for(tmp_path: Path, run: RunRecorder) -> None:
    recorder = unit(run)
    number = await reserve(recorder, 100)
    recorder.report(call(number, 0, "http 500"))
    await asyncio.sleep(0)
    assert rows(tmp_path) == [(number, "http 500", 100, 0)] and not recorder.take()


async def test_a_call_that_was_not_sent_leaves_no_row(tmp_path: Path, run: RunRecorder) -> None:
    recorder = unit(run)
    kept, dropped = await reserve(recorder), await reserve(recorder)
    recorder.not_sent(dropped)
    await asyncio.sleep(0)
    recorder.not_sent(0)
    recorder.let_go(0)  # no call has this number
    assert [row[0] for row in rows(tmp_path)] == [kept] and run.budget.calls == run.budget.in_flight == 1
    assert await reserve(recorder) not in {kept, dropped}


async def test_a_call_without_a_number_is_added(tmp_path: Path, ledger: Ledger) -> None:
    ledger.commit(settled(KEY, [call(0, 7), call(0, None)]))
    assert [row[1:] for row in rows(tmp_path)] == [("ok", None, 7), ("ok", None, None)]
    assert spent(ledger).unpriced == 1


async def test_numbers_go_on_where_the_last_start_ended(tmp_path: Path) -> None:
    numbers: list[int] = []
    for _ in range(2):
        with Ledger.create(tmp_path) as ledger:
            recorder = unit(RunRecorder(ledger, Caps(), NOTHING))
            numbers += [await reserve(recorder), await reserve(recorder)]
    assert len(set(numbers)) == 4 == len(rows(tmp_path))


async def test_at_the_cap_nothing_is_written(tmp_path: Path, ledger: Ledger) -> None:
    recorder = unit(RunRecorder(ledger, Caps(max_cost=150), NOTHING))
    recorder.report(call(await reserve(recorder, 100), 80, "cut"))
    with pytest.raises(CapReached, match="max_cost"):
        await reserve(recorder, 100)
    await asyncio.sleep(0)
    assert len(rows(tmp_path)) == 1


async def test_a_reservation_that_cannot_be_written_is_given_back(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        run = RunRecorder(ledger, Caps(), NOTHING)
        run.group.post(BROKEN)
        await asyncio.sleep(0)
        with pytest.raises(RunStopped):
            await reserve(unit(run))
        assert (run.budget.in_flight, run.budget.reserved, run.budget.calls) == (0, 0, 0)
    assert rows(tmp_path) == []


async def test_a_run_that_ends_while_a_call_waits_sends_nothing_and_keeps_nothing_for_it(
    tmp_path: Path, run: RunRecorder
) -> None:
    run.stopping = True
    with pytest.raises(asyncio.CancelledError):
        await reserve(unit(run))
    run.group.close()
    assert rows(tmp_path) == [] and unit(run).stopping
    assert (run.budget.in_flight, run.budget.reserved, run.budget.calls) == (0, 0, 0)


async def test_a_call_above_its_worst_case_is_charged_whole_and_told(said: Said, caplog: Any, run: RunRecorder) -> None:
    for worst, cost in ((100, 100), (None, 5), (100, None), (100, 101)):
        recorder = unit(run)
        recorder.report(call(await reserve(recorder, worst), cost))
    assert run.budget.spent == 206
    (told,) = [record.getMessage() for record in caplog.records]
    said(told)


async def test_an_unusable_answer_is_renamed_and_stays_paid_and_only_the_last_one(
    tmp_path: Path, run: RunRecorder
) -> None:
    recorder = unit(run)
    recorder.rename_last("malformed")
    numbers = [await reserve(recorder) for _ in range(2)]
    for number in numbers:
        recorder.report(call(number, 30))
    recorder.rename_last("malformed")
    recorder.write()
    await asyncio.sleep(0)
    assert [row[1:] for row in rows(tmp_path)] == [("ok", 100, 30), ("malformed", 100, 30)]
    assert recorder.take() == []


async def test_a_failure_that_passed_is_deleted_once(ledger: Ledger) -> None:
    for name, final in (("passing", False), ("other", False), ("final", True)):
        ledger.commit(failed(Key("s", "i", 0, name), "no answer", "HTTP 500", final, []))
    run = RunRecorder(ledger, Caps(), NOTHING)
    statements = run.recovered("passing", "final", "unknown")
    ledger.commit(statements)
    assert len(statements) == 1 and run.recovered("passing") == [] and run.passing == {"other"}
    assert ledger.passing_failures() == {"other"} and ledger.failure("final")


async def test_how_many_samples_fit_under_the_caps(ledger: Ledger) -> None:

    def fit(caps: Caps, cost: int, calls: int, worst: int = 50) -> int | None:
        return RunRecorder(ledger, caps, Spent(cost, calls, 0, 0.0), 2.0).affordable(worst)

    assert fit(Caps(), 10, 10) is None
    assert fit(Caps(max_calls=30), 10, 10) == 10
    assert fit(Caps(max_calls=30), 10, 30) == 1, "the last one may just fit"
    assert fit(Caps(max_cost=1000), 90, 9) == (1000 - 90) // (2 * 50), "few calls say little of what a call costs"
    assert fit(Caps(max_cost=1000), 100, 10) == (1000 - 100) // (2 * 10)
    assert fit(Caps(max_cost=1000, max_calls=20), 100, 10) == 5
    assert fit(Caps(max_cost=100), 0, 10) == 100, "ten calls that cost nothing"
    run = RunRecorder(ledger, Caps(max_cost=1000, max_calls=100), Spent(100, 10, 0, 0.0), 2.0)
    await run.budget.reserve(500)
    assert run.affordable(50) == (1000 - 100 - 500) // (2 * 10), "what is reserved may be spent"


async def test_without_a_run_every_call_is_allowed_and_has_no_number() -> None:
    recorder = current_recorder.get()
    assert isinstance(recorder, NullRecorder) and await recorder.reserve("model", "endpoint", 10**15) == 0
    assert recorder.adopt("endpoint", "model") is None and recorder.seed is None and not recorder.stopping
    with calls_kept_by(NullRecorder()) as inside:
        assert inside is current_recorder.get() is not recorder
    assert current_recorder.get() is recorder


# --- cancelled in the middle


@pytest.mark.parametrize("iterations", [1, 2])
async def test_a_reservation_cancelled_around_its_commit_leaves_all_even(
    tmp_path: Path, iterations: int, ledger: Ledger
) -> None:
    """One iteration of the event loop: before the commit; two: after it, before the waiting task knows."""
    run = RunRecorder(ledger, Caps(max_cost=100), NOTHING)
    task = asyncio.create_task(reserve(unit(run), 100))
    for _ in range(iterations):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    run.group.close()
    assert rows(tmp_path) == []
    assert (run.budget.in_flight, run.budget.reserved, run.budget.calls) == (0, 0, 0)
    assert await reserve(unit(run), 100), "the money is there for another"


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 5 else []) for seed in range(40)]
)
async def test_budget_and_ledger_agree_after_any_schedule(tmp_path: Path, seed: int, ledger: Ledger) -> None:
    rng = random.Random(seed)
    run = RunRecorder(ledger, Caps(max_cost=rng.choice((None, 500)), max_calls=rng.choice((None, 9))), NOTHING)

    async def call_or_cancel() -> None:
        recorder = unit(run)
        number = await reserve(recorder, worst := rng.randint(1, 100))
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            recorder.report(call(number, worst, "cancelled"))
            raise
        if rng.random() < 0.2:
            recorder.not_sent(number)
        else:
            recorder.report(call(number, rng.randint(0, worst), rng.choice(("ok", "cut"))))
            recorder.write()

    tasks = [asyncio.create_task(call_or_cancel()) for _ in range(20)]
    while not all(task.done() for task in tasks):
        if rng.random() < 0.5:
            rng.choice(tasks).cancel()
        await asyncio.sleep(0)
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        assert ended is None or isinstance(ended, CapReached | asyncio.CancelledError)
    run.group.close()
    total = spent(ledger)
    assert (total.picodollars, total.calls) == (run.budget.spent, run.budget.calls)
    assert (run.budget.in_flight, run.budget.reserved) == (0, 0)
    assert not [row for row in rows(tmp_path) if row[1] == "sent"]
