"""Caps that hold, whatever happens in whatever order. Money here is in small whole numbers."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from refed_dspy.errors import CapReached
from refed_dspy.ledger.budget import Budget, Caps
from tests.support.said import Said


async def settle_down() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def at_once(task: asyncio.Task[None]) -> None:
    """The outcome of `task`, which has nothing left to wait for."""
    await settle_down()
    assert task.done(), "it still waits"
    await task


def waiting(budget: Budget, worst: int, rank: int = 0) -> asyncio.Task[None]:
    return asyncio.create_task(budget.reserve(worst, rank))


# --- one by one


async def test_without_caps_everything_is_granted() -> None:
    budget = Budget(Caps())
    for _ in range(100):
        await budget.reserve(10**15)
    assert budget.in_flight == budget.calls == 100


async def test_what_is_set_aside_and_spent_fits_the_cap_to_the_last_unit() -> None:
    budget = Budget(Caps(max_cost=100), spent=40)
    await budget.reserve(60)
    budget.settle(60, 60)
    assert (budget.spent, budget.reserved) == (100, 0)
    with pytest.raises(CapReached) as reached:
        await budget.reserve(1)
    assert reached.value.cap == "max_cost" and reached.value.worst_picodollars == 1


async def test_earlier_starts_count() -> None:
    budget = Budget(Caps(max_calls=3), calls=2)
    await budget.reserve(0)
    budget.settle(0, 0)
    with pytest.raises(CapReached, match="max_calls"):
        await budget.reserve(0)


async def test_who_does_not_fit_proceeds_when_another_costs_less_than_its_worst_case() -> None:
    budget = Budget(Caps(max_cost=100))
    await budget.reserve(70)
    second = waiting(budget, 70)
    await settle_down()
    assert not second.done()
    budget.settle(70, 30)
    await at_once(second)
    assert (budget.spent, budget.reserved) == (30, 70)


async def test_a_call_that_was_never_sent_is_neither_charged_nor_counted() -> None:
    budget = Budget(Caps(max_cost=10, max_calls=1))
    await budget.reserve(10)
    second = waiting(budget, 10)
    await settle_down()
    budget.give_back(10)
    await at_once(second)
    assert (budget.spent, budget.reserved, budget.calls) == (0, 10, 1)


async def test_the_cap_is_reached_only_when_nothing_in_flight_could_give_back() -> None:
    budget = Budget(Caps(max_cost=100))
    await budget.reserve(50)
    await budget.reserve(50)
    third = waiting(budget, 60)
    budget.settle(50, 50)
    await settle_down()
    assert not third.done() and budget.reached is None
    budget.settle(50, 45)
    with pytest.raises(CapReached):
        await at_once(third)
    assert budget.reached is not None and budget.reached.worst_picodollars == 60


async def test_once_a_cap_is_reached_nothing_is_granted_that_would_fit() -> None:
    budget = Budget(Caps(max_cost=100))
    await budget.reserve(90)
    others = [waiting(budget, worst) for worst in (50, 1, 1)]
    await settle_down()
    budget.settle(90, 90)
    for other in others:
        with pytest.raises(CapReached):
            await at_once(other)
    with pytest.raises(CapReached):
        await budget.reserve(0)
    assert budget.in_flight == 0 and budget.spent == 90


async def test_of_those_that_wait_the_lowest_rank_goes_first_and_equals_in_order(said: Said) -> None:
    budget, order = Budget(Caps(max_cost=10)), list[str]()

    async def call(name: str, rank: int) -> None:
        await budget.reserve(10, rank)
        order.append(name)
        await asyncio.sleep(0)
        budget.settle(10, 0)

    await budget.reserve(10)
    ranked = {"feedback": 0, "improve": -3, "respond": -2, "improve too": -3}
    tasks = [asyncio.create_task(call(name, rank)) for name, rank in ranked.items()]
    await settle_down()
    budget.settle(10, 0)
    for task in tasks:
        await at_once(task)
    said(order)


@pytest.mark.parametrize("others", [0, 3])
async def test_a_bill_above_the_reservation_ends_the_run_instead_of_costing_more_calls(others: int) -> None:
    budget = Budget(Caps(max_cost=100))
    await budget.reserve(40)
    for _ in range(others):
        await budget.reserve(20)
    late = waiting(budget, 80)
    await settle_down()
    budget.settle(40, 95)
    for _ in range(others):
        budget.settle(20, 20)
    with pytest.raises(CapReached):
        await at_once(late)
    with pytest.raises(CapReached):
        await budget.reserve(1)
    assert budget.calls == 1 + others


# --- calls of earlier starts, and other caps


async def test_a_call_of_an_earlier_start_that_is_in_flight_again_is_reserved_until_it_ends() -> None:
    budget = Budget(Caps(max_cost=100), spent=80, calls=3)
    budget.adopt(50)
    assert (budget.spent, budget.reserved, budget.in_flight, budget.calls) == (30, 50, 1, 3)
    other = waiting(budget, 40)
    await settle_down()
    assert not other.done(), "the call in flight may give something back"
    budget.settle(50, 20)
    await at_once(other)
    assert (budget.spent, budget.reserved, budget.in_flight, budget.calls) == (50, 40, 1, 4)


async def test_a_call_of_an_earlier_start_that_was_not_paid_for_makes_room() -> None:
    budget = Budget(Caps(max_cost=100, max_calls=3), spent=70, calls=2)
    await budget.reserve(30)
    other = waiting(budget, 30)
    await settle_down()
    budget.forget(40)
    await at_once(other)
    assert (budget.spent, budget.reserved, budget.in_flight, budget.calls) == (30, 60, 2, 3)


async def test_a_call_of_an_earlier_start_that_cost_less_makes_room() -> None:
    budget = Budget(Caps(max_cost=100), spent=70, calls=2)
    await budget.reserve(30)
    other = waiting(budget, 25)
    await settle_down()
    budget.recharge(40, 15)
    await at_once(other)
    assert (budget.spent, budget.reserved, budget.in_flight, budget.calls) == (45, 55, 2, 4)


async def test_another_cap_lets_those_who_wait_and_those_who_come_go_on() -> None:
    budget = Budget(Caps(max_calls=1))
    await budget.reserve(5)
    other = waiting(budget, 5)
    await settle_down()
    assert not other.done()
    budget.allow(Caps(max_calls=2))
    await at_once(other)
    for _ in range(2):
        budget.settle(5, 5)
    with pytest.raises(CapReached):
        await budget.reserve(5)
    budget.allow(Caps(max_cost=15))
    await budget.reserve(5)
    assert (budget.spent, budget.reserved, budget.calls) == (10, 5, 3)


async def test_a_grant_in_the_moment_of_a_cancellation_is_given_back() -> None:
    budget = Budget(Caps(max_cost=10))
    await budget.reserve(10)
    second, third = waiting(budget, 10), waiting(budget, 10)
    await settle_down()
    budget.settle(10, 0)  # the second is granted now, but does not know yet
    second.cancel()
    await at_once(third)
    assert second.cancelled() and (budget.in_flight, budget.calls, budget.reserved) == (1, 2, 10)


async def test_a_cancelled_wait_leaves_no_trace() -> None:
    budget = Budget(Caps(max_cost=10))
    await budget.reserve(10)
    second = waiting(budget, 10)
    await settle_down()
    second.cancel()
    await settle_down()
    budget.settle(10, 0)
    await budget.reserve(10)
    assert (budget.in_flight, budget.calls) == (1, 2)


async def test_who_fits_does_not_wait_behind_one_that_was_cancelled() -> None:
    budget = Budget(Caps(max_cost=100))
    await budget.reserve(60)
    large = waiting(budget, 50)
    await settle_down()
    large.cancel()
    await settle_down()
    small = waiting(budget, 30)
    await settle_down()
    try:
        assert small.done(), "60 + 30 fit under 100, and nobody else waits"
    finally:
        small.cancel()


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
def test_no_schedule_passes_a_cap_or_leaks_a_reservation(overcharged: bool) -> None:
    async def all_of_them() -> None:
        for seed in range(2000):
            schedule = Schedule(seed, overcharged)
            await asyncio.wait_for(schedule.run(), 60)
            budget = schedule.budget
            assert (budget.in_flight, budget.reserved) == (0, 0), seed
            assert (budget.spent, budget.calls) == (schedule.billed, schedule.sent), seed
            assert overcharged or schedule.caps.max_cost is None or budget.spent <= schedule.caps.max_cost, seed

    asyncio.run(all_of_them())


def test_the_schedules_meet_what_they_are_for() -> None:
    async def all_of_them() -> list[Budget]:
        schedules = [Schedule(seed, overcharged=False) for seed in range(200)]
        for schedule in schedules:
            await schedule.run()
        return [schedule.budget for schedule in schedules]

    budgets = asyncio.run(all_of_them())
    caps = {budget.reached.cap if budget.reached else None for budget in budgets}
    assert caps == {None, "max_cost", "max_calls"}
