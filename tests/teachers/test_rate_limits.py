"""The window, and which call gets its slot when. Time is virtual."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest

from refed_dspy.teachers.rate_limits import (
    FIRST_WINDOW,
    LONGEST_PAUSE,
    OPENING,
    RateLimits,
)
from tests.support.clocks import Clock, in_virtual_time, settle_down, virtual_limits
from tests.support.slots import at_once, sent, slots

# --- the window


async def test_good_answers_widen_the_window_up_to_the_most() -> None:
    limits = RateLimits(200, clock=Clock())
    assert limits.window == FIRST_WINDOW
    for slot in await slots(limits, FIRST_WINDOW):
        limits.went_well(slot)
    assert limits.window == 4 * FIRST_WINDOW, "at first four times as many each round trip"
    for _ in range(100):
        limits.went_well(*await slots(limits, 1))
    assert limits.window == 200


LARGE = {"x-ratelimit-limit-requests": "10000", "x-ratelimit-remaining-requests": "5000"}
IN_TOKENS = {"x-ratelimit-limit-tokens": "100000", "x-ratelimit-remaining-tokens": "50000"}


@pytest.mark.parametrize(
    ("told", "window"), [({}, FIRST_WINDOW), (LARGE, 5000), (IN_TOKENS, 500)], ids=["nothing", "requests", "tokens"]
)
async def test_an_endpoint_that_names_a_large_limit_is_asked_as_much_at_once(
    told: dict[str, str], window: float
) -> None:
    """Of a limit in tokens as many calls as are left of this size."""
    limits = RateLimits(8000, clock=Clock())
    for _ in range(2):
        limits.sent(await limits.acquire(100))
    limits.learn(told)
    assert limits.window == window


async def test_after_a_refusal_a_large_limit_in_a_header_does_not_open_the_window() -> None:
    limits = RateLimits(8000, clock=(clock := Clock()))
    (slot,) = await sent(limits, 1)
    limits.refused(slot, 1)
    clock.now += 2
    window = limits.window
    limits.learn(LARGE)
    assert limits.window == window


async def test_after_a_connection_that_could_not_be_made_the_window_grows_slowly() -> None:
    limits = RateLimits(200, clock=(clock := Clock()))
    before, after = await sent(limits, 2)
    limits.not_reached(before)
    clock.now += 1
    window = limits.window
    limits.went_well(after)
    assert window < limits.window < window + 1.5


async def test_after_it_was_full_the_window_grows_by_one_and_a_sixteenth_a_round_trip() -> None:
    clock = Clock()
    limits = RateLimits(64, clock=clock)
    (slot,) = await sent(limits, 1)
    clock.now += 1
    limits.refused(slot, 0.5)
    assert limits.window == FIRST_WINDOW / 2
    clock.now += 1
    for slot in await slots(limits, FIRST_WINDOW // 2):
        limits.went_well(slot)
    assert limits.window == pytest.approx(FIRST_WINDOW / 2 + 2, abs=0.2)


@pytest.mark.parametrize("seed", range(5))
async def test_the_window_stays_between_one_and_the_most(seed: int) -> None:
    rng, clock = random.Random(seed), Clock()
    limits = RateLimits(24, clock=clock, rng=rng)
    for _ in range(200):
        (slot,), before = await sent(limits, 1), limits.window
        clock.now += 1
        if rng.random() < 0.5:
            limits.refused(slot, rng.choice((None, 0.0, 1.0, 60.0)))
        else:
            limits.went_well(slot)
        assert max(1, before / 2) <= limits.window <= min(24, before + OPENING)
        clock.now += LONGEST_PAUSE
    assert limits.in_flight == 0


# --- who waits


@in_virtual_time
async def test_those_who_wait_are_let_in_in_order() -> None:
    limits, order = virtual_limits(tokens=600), list[int]()

    async def call(number: int, tokens: float) -> None:
        slot = await limits.acquire(tokens)
        order.append(number)
        limits.went_well(slot)

    sizes = [600, 500, 1, 300, 2, 2, 600, 1]  # a small one does not overtake a large one
    await asyncio.gather(*(call(number, tokens) for number, tokens in enumerate(sizes)))
    assert order == sorted(order)


async def test_a_slot_granted_in_the_moment_of_a_cancellation_is_released() -> None:
    limits = RateLimits(1, clock=Clock())
    first = await limits.acquire(1)
    second, third = (asyncio.create_task(limits.acquire(1)) for _ in range(2))
    await settle_down()
    limits.ended(first)  # the second has its slot now, but does not know yet
    second.cancel()
    limits.ended(await at_once(third))
    assert second.cancelled() and limits.in_flight == 0


async def test_who_stood_behind_a_cancelled_one_need_not_wait_in_its_place() -> None:
    clock = Clock()
    limits = RateLimits(4, tokens_per_minute=600, clock=clock)
    await limits.acquire(500)
    large, small = asyncio.create_task(limits.acquire(600)), asyncio.create_task(limits.acquire(1))
    await settle_down()
    large.cancel()
    await settle_down()
    try:
        assert small.done(), "a hundred tokens are left"
    finally:
        small.cancel()


@in_virtual_time
@pytest.mark.parametrize("seed", range(20))
async def test_nobody_is_stuck_and_no_slot_leaks(seed: int) -> None:
    rng = random.Random(seed)

    async def use(limits: RateLimits) -> None:
        slot = await limits.acquire(rng.uniform(0, 300))
        end = rng.choice((limits.went_well, limits.ended, lambda slot: limits.refused(slot, rng.choice((None, 3.0)))))
        try:
            assert limits.in_flight <= limits.most
            await asyncio.sleep(rng.choice((0, 0.1, 2)))
        finally:
            end(slot)

    limits = virtual_limits(rng.randint(1, 20), requests=rng.choice((None, 30)), tokens=rng.choice((None, 1000)))
    tasks: list[asyncio.Task[None]] = []
    for _ in range(60):
        tasks.append(asyncio.create_task(use(limits)))
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(rng.choice((0, 0, 0.1, 1)))
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    assert limits.in_flight == 0
