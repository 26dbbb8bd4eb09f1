"""What refusals, silence and connections that fail do to the window. Time is virtual."""

from __future__ import annotations

import asyncio
import random

import pytest

from refed_dspy.teachers.rate_limits import (
    FIRST_WINDOW,
    HOLD_FROM,
    LONGEST_PAUSE,
    MIN_REFUSALS,
    PATIENCE,
    PROBES,
    RateLimits,
    Silent,
)
from tests.support.clocks import Clock, in_virtual_time, settle_down, virtual_limits
from tests.support.said import Said
from tests.support.slots import at_once, sent, slots


@pytest.mark.parametrize("retry_after", [None, 1.0])
async def test_calls_refused_together_halve_the_window_about_once(retry_after: float | None) -> None:
    clock = Clock()
    limits = RateLimits(64, clock=clock, rng=random.Random(0))
    together = await sent(limits, FIRST_WINDOW)
    for slot in together:
        clock.now += 0.01
        limits.refused(slot, retry_after)
    once = limits.window
    assert FIRST_WINDOW / 4 <= once <= FIRST_WINDOW / 2, "the first of them may have been chance"
    clock.now += LONGEST_PAUSE
    (later,) = await sent(limits, 1)
    clock.now += 1
    limits.refused(later, retry_after)
    assert limits.window == once / 2, "sent after the last decrease, it says something new"


@pytest.mark.parametrize("every", [50, 10, 3])
async def test_who_is_refused_while_others_are_answered_waits_alone(every: int) -> None:
    clock = Clock()
    limits = RateLimits(64, clock=clock)
    for number in range(1, 40 * every):
        first, other = await sent(limits, 2)
        clock.now += 0.01
        if number % every:
            limits.went_well(first)
        else:
            limits.refused(first, 60)
        limits.went_well(other)
    begun = clock.now
    await at_once(asyncio.create_task(limits.acquire(1)))
    assert limits.window >= 8 and clock.now == begun


async def test_who_is_full_lets_nobody_in_for_as_long_as_it_asks() -> None:
    clock = Clock()
    limits = RateLimits(64, clock=clock)
    for slot in await sent(limits, 20):
        limits.went_well(slot)
    both = await sent(limits, 20)
    for slot in both[:4]:
        limits.refused(slot, 5)
    waiting = asyncio.create_task(limits.acquire(1))
    await settle_down()
    assert not waiting.done(), "four in a row of those sent last are no chance, though sixteen have no answer yet"
    waiting.cancel()


async def test_calls_without_an_answer_hold_all_others_back_until_one_is_answered(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    limits = RateLimits(64, clock=clock)
    for slot in await sent(limits, 8):
        limits.unanswered(slot, "no answer")
    said(caplog.messages)
    clock.now += 1
    (probe,) = await sent(limits, 1)
    waiting = asyncio.create_task(limits.acquire(1))
    await settle_down()
    assert not waiting.done(), "one at a time"
    probe.answered = True
    limits.went_well(probe)
    await at_once(waiting)
    assert len(await slots(limits, 20)) == 20


@in_virtual_time
async def test_who_never_answers_is_asked_a_few_times_more_and_no_longer(said: Said) -> None:
    limits, asked = virtual_limits(), 0
    with said.by(Silent):
        while asked < 50:
            limits.sent(slot := await limits.acquire(1))
            asked += 1
            waiting = asyncio.create_task(limits.acquire(1)) if asked >= HOLD_FROM + PROBES else None
            limits.unanswered(slot, "no answer")
            if waiting is not None:
                await waiting
    assert asked == HOLD_FROM + PROBES
    await asyncio.sleep(60)
    await limits.acquire(1)  # a later job asks again


async def test_nothing_but_refusals_for_long_is_hopeless() -> None:
    clock = Clock()
    limits = RateLimits(4, clock=clock, rng=random.Random(0))
    while not limits.hopeless:
        (slot,) = await slots(limits, 1)
        limits.refused(slot, 30)
        clock.now += 31
        assert clock.now < 100 + 2 * PATIENCE
    assert clock.now > 100 + PATIENCE
    limits.went_well(*await slots(limits, 1))
    assert not limits.hopeless
    limits.refused(*await slots(limits, 1), 1)
    assert not limits.hopeless, "patience begins anew with the first refusal after an answer"


async def test_few_refusals_are_not_hopeless_however_long_they_took() -> None:
    clock = Clock()
    limits = RateLimits(4, clock=clock, rng=random.Random(0))
    for number in range(MIN_REFUSALS):
        assert not limits.hopeless
        limits.refused((await slots(limits, 1))[0], None)
        clock.now += PATIENCE if number else PATIENCE + 1
    assert limits.hopeless
    limits.ended(*await slots(limits, 1))
    assert not limits.hopeless, "something else than a refusal came"


async def test_refusals_at_random_shrink_the_window_by_half_their_share() -> None:
    clock = Clock()
    limits = RateLimits(FIRST_WINDOW, clock=clock, rng=random.Random(0))
    for _ in range(3):
        limits.went_well(*await slots(limits, 1))
    clock.now += 1
    limits.refused((await slots(limits, 1))[0], None)
    assert limits.window == FIRST_WINDOW * (1 - 1 / 4 / 2)


async def test_being_full_halves_the_window_whatever_was_refused_by_chance_before() -> None:
    clock = Clock()
    limits = RateLimits(64, clock=clock)
    for _ in range(40):
        limits.went_well(*await sent(limits, 1))
    clock.now += 1
    together, before = await sent(limits, 40), limits.window
    for slot in together:
        clock.now += 0.01
        limits.refused(slot, None)
    assert before / 4 < limits.window <= before / 2, "once: all were sent before it was known to be full"


async def test_a_call_sent_after_the_last_decrease_counts_however_long_ago_it_got_its_slot() -> None:
    limits = RateLimits(64, clock=(clock := Clock()))
    first, later = await slots(limits, 2)
    for slot in (first, later):
        clock.now += 1
        limits.sent(slot)
        window = limits.window
        limits.not_reached(slot)
        assert limits.window < window


async def refusals_until_full(answers: int) -> int:
    """How many calls sent together are refused, after so many answers, before the window is halved."""
    limits = RateLimits(64, clock=(clock := Clock()))
    for _ in range(answers):
        limits.went_well(*await sent(limits, 1))
    for number, slot in enumerate(await sent(limits, 30), 1):
        clock.now += 0.01
        before = limits.window
        limits.refused(slot, None)
        if limits.window <= before / 2:
            return number
    pytest.fail("it is never full")


async def test_the_more_answers_the_fewer_refusals_in_a_row_mean_that_it_is_full() -> None:
    assert await refusals_until_full(600) < await refusals_until_full(60)


async def test_connections_that_cannot_be_made_mean_fewer_at_once_and_no_alarm() -> None:
    limits = RateLimits(400, probes=2)
    limits.window = 400.0
    slots = [await limits.acquire(1) for _ in range(400)]
    for slot in slots:
        limits.sent(slot)
    for slot in slots[:300]:
        limits.not_reached(slot)
    assert not limits.silence.holds and 1 <= limits.window < 400
    for slot in slots[300:]:
        limits.went_well(slot)
    assert limits.in_flight == 0 and limits.window > 1


async def test_a_few_drops_among_many_calls_hold_nobody() -> None:
    limits = RateLimits(640)
    limits.window = 640.0
    slots = [await limits.acquire(1) for _ in range(640)]
    for slot in slots:
        limits.sent(slot)
    for slot in slots[:19]:
        limits.unanswered(slot, "closed")
    assert not limits.silence.holds
    limits.unanswered(slots[19], "closed")
    assert limits.silence.holds, "one in 32 of those in flight"
