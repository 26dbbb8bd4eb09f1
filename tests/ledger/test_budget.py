"""Caps that hold, whatever happens in whatever order. Money here is in small whole numbers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from refed_dspy.errors import CapReached
from refed_dspy.ledger.budget import Budget, Caps


async def settle_down() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def at_once(task: asyncio.Task[None]) -> None:
    """The outcome of `task`, which has nothing left to wait for."""
    await settle_down()
    assert task.done(), "it still waits"
    await task


async def waiting(budget: Budget, worst: int) -> asyncio.Task[None]:
    """A reservation that has to wait."""
    task = asyncio.create_task(budget.reserve(worst))
    await settle_down()
    assert not task.done()
    return task


# --- one by one


@pytest.mark.parametrize(
    ("caps", "spent", "calls", "worst"), [(Caps(max_cost=100), 40, 0, 60), (Caps(max_calls=3), 0, 2, 0)]
)
async def test_what_is_reserved_and_what_earlier_starts_used_fits_the_cap_to_the_last_unit(
    caps: Caps, spent: int, calls: int, worst: int
) -> None:
    budget = Budget(caps, spent, calls)
    await budget.reserve(worst)
    budget.settle(worst, worst)
    assert (budget.spent, budget.reserved, budget.calls) == (spent + worst, 0, calls + 1)
    with pytest.raises(CapReached) as reached:
        await budget.reserve(1)
    assert reached.value.cap == ("max_cost" if caps.max_cost else "max_calls")
    assert reached.value.worst_picodollars == 1


@pytest.mark.parametrize(
    ("caps", "earlier", "first", "second", "happens", "left"),
    [
        pytest.param(Caps(100), (0, 0), 70, 70, lambda budget: budget.settle(70, 30), (30, 70, 1, 2), id="cheaper"),
        pytest.param(Caps(10, 1), (0, 0), 10, 10, lambda budget: budget.give_back(10), (0, 10, 1, 1), id="never sent"),
        pytest.param(Caps(100, 3), (70, 2), 30, 30, lambda budget: budget.forget(40), (30, 60, 2, 3), id="not paid"),
        pytest.param(
            Caps(100), (70, 2), 30, 25, lambda budget: budget.recharge(40, 15), (45, 55, 2, 4), id="cost less"
        ),
        pytest.param(
            Caps(None, 1), (0, 0), 5, 5, lambda budget: budget.allow(Caps(None, 2)), (0, 10, 2, 2), id="another cap"
        ),
    ],
)
async def test_whoever_does_not_fit_waits_until_there_is_room(
    caps: Caps,
    earlier: tuple[int, int],
    first: int,
    second: int,
    happens: Callable[[Budget], None],
    left: tuple[int, ...],
) -> None:
    """Room comes of a call in flight (it was cheaper, never sent), of one that an earlier start sent (it was not paid
    for, cost less), and of another cap."""
    budget = Budget(caps, *earlier)
    await budget.reserve(first)
    other = await waiting(budget, second)
    happens(budget)
    await at_once(other)
    assert (budget.spent, budget.reserved, budget.in_flight, budget.calls) == left


async def test_a_call_of_an_earlier_start_that_is_in_flight_again_is_reserved_until_it_ends() -> None:
    budget = Budget(Caps(max_cost=100), spent=80, calls=3)
    budget.adopt(50)
    assert (budget.spent, budget.reserved, budget.in_flight, budget.calls) == (30, 50, 1, 3)
    other = await waiting(budget, 40)
    budget.settle(50, 20)
    await at_once(other)
    assert (budget.spent, budget.reserved, budget.in_flight, budget.calls) == (50, 40, 1, 4)


async def test_a_cap_is_reached_once_nothing_in_flight_could_give_back_and_then_nothing_is_granted() -> None:
    budget = Budget(Caps(max_cost=100))
    await budget.reserve(50)
    await budget.reserve(45)
    others = [await waiting(budget, worst) for worst in (50, 1, 1)]
    budget.settle(50, 50)
    await settle_down()
    assert budget.reached is None and not any(other.done() for other in others)
    budget.settle(45, 45)
    for other in others:
        with pytest.raises(CapReached):
            await at_once(other)
    assert budget.reached is not None and budget.reached.worst_picodollars == 50
    with pytest.raises(CapReached):
        await budget.reserve(0)
    assert (budget.spent, budget.in_flight, budget.calls) == (95, 0, 2)
    budget.allow(Caps(max_cost=150))
    await budget.reserve(50)
    assert (budget.spent, budget.reserved, budget.calls) == (95, 50, 3)


async def test_of_those_that_wait_the_lowest_rank_goes_first_and_equals_in_order() -> None:
    budget, order = Budget(Caps(max_cost=10)), list[str]()

    async def call(name: str, rank: int) -> None:
        await budget.reserve(10, rank)
        order.append(name)
        await asyncio.sleep(0)
        budget.settle(10, 0)

    await budget.reserve(10)
    ranked = {"feedback": 0, "improve": -3, "respond": -2, "again": -3}
    tasks = [asyncio.create_task(call(name, rank)) for name, rank in ranked.items()]
    await settle_down()
    budget.settle(10, 0)
    for task in tasks:
        await at_once(task)
    assert order == ["improve", "again", "respond", "feedback"]


@pytest.mark.parametrize("others", [0, 3])
async def test_a_bill_above_the_reservation_ends_the_run_instead_of_costing_more_calls(others: int) -> None:
    budget = Budget(Caps(max_cost=100))
    await budget.reserve(40)
    for _ in range(others):
        await budget.reserve(20)
    late = await waiting(budget, 80)
    budget.settle(40, 95)
    for _ in range(others):
        budget.settle(20, 20)
    with pytest.raises(CapReached):
        await at_once(late)
    with pytest.raises(CapReached):
        await budget.reserve(1)
    assert budget.calls == 1 + others


async def test_a_grant_in_the_moment_of_a_cancellation_is_given_back() -> None:
    budget = Budget(Caps(max_cost=10))
    await budget.reserve(10)
    second, third = await waiting(budget, 10), await waiting(budget, 10)
    budget.settle(10, 0)  # the second is granted now, but does not know yet
    second.cancel()
    await at_once(third)
    assert second.cancelled() and (budget.in_flight, budget.calls, budget.reserved) == (1, 2, 10)


async def test_a_cancelled_wait_leaves_no_trace_and_nobody_waits_behind_it() -> None:
    budget = Budget(Caps(max_cost=100))
    await budget.reserve(60)
    large = await waiting(budget, 50)
    large.cancel()
    await settle_down()
    await at_once(asyncio.create_task(budget.reserve(30)))
    assert (budget.in_flight, budget.calls, budget.reserved) == (2, 2, 90)


# --- in any order


class Watched(Budget):
    """Checks at every grant, even one that nobody has noticed yet, that it fits."""

    def __setattr__(self, name: str, value: int) -> None:
        more = value > getattr(self, name, 0) if name in {"reserved", "calls"} else False
        super().__setattr__(name, value)
        if more and name == "reserved":
            assert self.reached is None
            assert self.caps.max_cost is None or self.spent + self.reserved <= self.caps.max_cost
        if more and name == "calls":
            assert self.caps.max_calls is None or self.calls <= self.caps.max_calls


class Schedule:
    """Ten tasks that reserve, then settle, give back, or are cancelled, all at random.

    `overcharged`: calls may cost up to twice what was set aside for them.
    """

    def __init__(self, seed: int, overcharged: bool) -> None:
        self.rng, self.dearest = random.Random(seed), 2 if overcharged else 1
        self.caps = Caps(
            self.rng.choice((None, self.rng.randint(1, 300))), self.rng.choice((None, self.rng.randint(1, 9)))
        )
        self.budget = Watched(self.caps)
        self.billed = self.sent = 0

    async def call(self) -> None:
        rng, budget, worst = self.rng, self.budget, self.rng.randint(0, 100)
        try:
            await budget.reserve(worst, rng.randint(-3, 0))
        except CapReached:
            assert budget.in_flight == 0 and budget.reached is not None
            return
        try:
            for _ in range(rng.randint(0, 4)):
                await asyncio.sleep(0)
        finally:
            if rng.random() < 0.2:
                budget.give_back(worst)
            else:
                cost = rng.randint(0, self.dearest * worst)
                self.billed, self.sent = self.billed + cost, self.sent + 1
                budget.settle(worst, cost)

    async def run(self) -> None:
        tasks = [asyncio.create_task(self.call()) for _ in range(10)]
        while not all(task.done() for task in tasks):
            if self.rng.random() < 0.3:
                self.rng.choice(tasks).cancel()
            await asyncio.sleep(0)
        for task in tasks:
            with suppress(asyncio.CancelledError):
                task.result()


@pytest.mark.parametrize("overcharged", [False, True])
@pytest.mark.parametrize("seeds", [range(300), pytest.param(range(300, 4000), marks=pytest.mark.slow)], ids=str)
def test_no_schedule_passes_a_cap_or_leaks_a_reservation(overcharged: bool, seeds: range) -> None:
    async def all_of_them() -> set[str | None]:
        reached: set[str | None] = set()
        for seed in seeds:
            schedule = Schedule(seed, overcharged)
            await asyncio.wait_for(schedule.run(), 60)
            budget = schedule.budget
            assert (budget.in_flight, budget.reserved) == (0, 0), seed
            assert (budget.spent, budget.calls) == (schedule.billed, schedule.sent), seed
            assert overcharged or schedule.caps.max_cost is None or budget.spent <= schedule.caps.max_cost, seed
            reached.add(budget.reached.cap if budget.reached else None)
        return reached

    assert asyncio.run(all_of_them()) == {None, "max_cost", "max_calls"}, "they meet what they are for"
