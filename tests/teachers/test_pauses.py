"""How long calls wait where an endpoint is full or refuses them, and what is said of it. Time is virtual."""

from __future__ import annotations

import asyncio
import random
import re

import pytest

from refed_dspy.teachers.rate_limits import (
    FIRST_WINDOW,
    LONGEST_PAUSE,
    RateLimits,
    WaitTooLong,
    current_slot,
    seconds_alone,
)
from tests.support.clocks import Clock, in_virtual_time, settle_down, virtual_limits
from tests.support.said import Said
from tests.support.slots import sent, slots


@in_virtual_time
@pytest.mark.parametrize("asked", [[5.0], [300.0], [30.0, 30.0, 30.0, 30.0, 1.0]])
async def test_a_pause_is_as_long_as_the_longest_that_was_asked_for(asked: list[float]) -> None:
    limits, loop = virtual_limits(), asyncio.get_running_loop()
    begun = loop.time()
    for slot, seconds in zip(await sent(limits, len(asked)), asked, strict=True):
        limits.refused(slot, seconds)
    await limits.acquire(1)
    assert max(asked) <= loop.time() - begun < max(asked) + 0.1


@in_virtual_time
async def test_who_is_asked_to_wait_longer_than_is_worth_it_hears_so_at_once_and_with_the_time() -> None:
    limits, loop = virtual_limits(), asyncio.get_running_loop()
    begun, both = loop.time(), await sent(limits, 2)
    limits.refused(both[0], 3600)
    alone = asyncio.create_task(limits.alone(3600))
    await settle_down()
    limits.refused(both[1], 3600)
    await alone
    for _ in range(2):
        with pytest.raises(WaitTooLong, match=r"60 minutes, until \d\d:\d\d, "):
            await limits.acquire(1)
    assert loop.time() == begun


@in_virtual_time
async def test_after_the_pause_of_a_full_endpoint_a_refused_call_waits_alone_again() -> None:
    limits, loop = virtual_limits(), asyncio.get_running_loop()
    limits.refused(await limits.acquire(1), 30)
    await limits.acquire(1)
    begun = loop.time()
    await limits.alone(5)
    assert loop.time() - begun >= 5


@pytest.mark.parametrize(("refusals", "longest"), [(0, 0.2), (1, 0.4), (5, 6.4), (30, LONGEST_PAUSE)])
def test_the_longest_wait_doubles_with_each_refusal(refusals: int, longest: float) -> None:
    waits = [seconds_alone(None, refusals) for _ in range(400)]
    assert min(waits) < 0.1 * longest < 0.9 * longest < max(waits) <= longest


def test_a_wait_that_was_asked_for_is_a_tenth_longer_at_most() -> None:
    waits = [seconds_alone(10.0, 30) for _ in range(400)]
    assert min(waits) >= 10 and 10.9 < max(waits) <= 11


@in_virtual_time
async def test_after_a_pause_those_who_waited_come_within_the_window() -> None:
    limits, loop = virtual_limits(), asyncio.get_running_loop()
    first = await slots(limits, FIRST_WINDOW)
    entered: list[float] = []

    async def call() -> None:
        slot = await limits.acquire(1)
        entered.append(loop.time())
        assert limits.in_flight <= int(limits.window)
        await asyncio.sleep(1)
        limits.ended(slot)

    waiting = [asyncio.create_task(call()) for _ in range(60)]
    await asyncio.sleep(0.1)
    for slot in first:
        limits.refused(slot, 2)
    await asyncio.gather(*waiting)
    assert max(entered.count(moment) for moment in entered) <= FIRST_WINDOW / 2


async def refused_after_answers(limits: RateLimits) -> None:
    """Sixty answers after a tenth of a second each, then a pause of two seconds."""
    for _ in range(60):
        limits.sent(slot := await limits.acquire(1))
        await asyncio.sleep(0.1)
        limits.went_well(slot)
    (slot,) = await sent(limits, 1)
    limits.refused(slot, 2)


@in_virtual_time
async def test_after_a_pause_they_come_one_by_one_over_the_time_that_an_answer_takes() -> None:
    limits, loop = virtual_limits(), asyncio.get_running_loop()
    await refused_after_answers(limits)
    came = list[float]()
    for _ in range(int(limits.window)):
        await limits.acquire(1)
        came.append(loop.time())
    assert len(came) > 4 and 0.05 < came[-1] - came[0] <= 0.11


@in_virtual_time
async def test_once_as_many_as_may_are_in_flight_again_the_others_come_as_slots_are_free() -> None:
    limits, loop = virtual_limits(), asyncio.get_running_loop()
    await refused_after_answers(limits)
    in_flight = [await limits.acquire(1) for _ in range(int(limits.window))]
    waiting = [asyncio.create_task(limits.acquire(1)) for _ in range(4)]
    await asyncio.sleep(0.1)
    ended = loop.time()
    for slot in in_flight[:4]:
        limits.ended(slot)
    await asyncio.gather(*waiting)
    assert loop.time() == ended


def without_times(lines: list[str]) -> list[str]:
    return [re.sub(r"\d\d:\d\d(:\d\d)?", "TIME", line) for line in lines]


@in_virtual_time
@pytest.mark.parametrize("retry_after", [5, 45, 600])
async def test_a_long_pause_is_told_and_told_again_with_its_reason(
    said: Said, retry_after: float, caplog: pytest.LogCaptureFixture
) -> None:
    limits = RateLimits(8, clock=asyncio.get_running_loop().time, rng=random.Random(0), name="http://there/v1")
    for _ in range(3):  # refused each time
        limits.refused(await limits.acquire(1), retry_after)
    limits.ended(await limits.acquire(1))
    said(without_times(caplog.messages))


@in_virtual_time
async def test_a_limit_that_is_used_up_is_told_and_told_again_after_an_answer(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    limits = RateLimits(8, tokens_per_minute=60, clock=asyncio.get_running_loop().time, name="there")
    for _ in range(4):
        limits.went_well(await limits.acquire(50))
    said(without_times(caplog.messages))


async def test_headers_are_of_the_moment_in_which_their_call_was_sent() -> None:
    clock = Clock()
    limits = RateLimits(8, clock=clock)
    first, second = await limits.acquire(100), await limits.acquire(30)
    limits.sent(second)
    limits.sent(first)
    third = await limits.acquire(7)
    limits.sent(third)
    current_slot.set(first)
    clock.now += 2
    told = {"limit-requests": "60", "remaining-requests": "10", "limit-tokens": "600", "remaining-tokens": "100"}
    limits.learn({f"x-ratelimit-{name}": value for name, value in told.items()})
    assert limits.requests.left == 10 + 2 * 1 - 1, "one request was sent since"
    assert limits.tokens.left == 100 + 2 * 10 - 7
    assert (limits.requests.taken, limits.tokens.taken, limits.in_flight) == (3, 137, 3)


@in_virtual_time
async def test_a_limit_that_is_used_up_for_long_refuses_who_needs_it_and_lets_others_in() -> None:
    limits = virtual_limits()
    limits.tokens.learn(limit=1000, left=10, reset=86_400)
    asked = [asyncio.create_task(limits.acquire(tokens)) for tokens in (500, 5)]
    await settle_down()
    with pytest.raises(WaitTooLong):
        await asked[0]
    assert asked[1].done() and limits.in_flight == 1


def test_a_wait_is_told_in_the_largest_unit_that_it_has_twice(said: Said) -> None:
    waits = [WaitTooLong(seconds) for seconds in (119, 120, 7200, 172_800, 63_115_200)]
    said([str(wait).partition(", until")[0] for wait in waits])
