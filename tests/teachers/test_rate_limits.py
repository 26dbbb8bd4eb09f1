"""The window, pauses, and which call gets its slot when. Time is virtual."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress

import pytest

from refed_dspy.teachers.rate_limits import (
    FIRST_WINDOW,
    LONGEST_PAUSE,
    OPENING,
    RateLimits,
    WaitTooLong,
    current_slot,
    seconds_alone,
)
from tests.support.clocks import Clock, settle_down, virtual_limits, virtually
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


async def test_an_endpoint_that_names_a_large_limit_is_asked_as_much_at_once() -> None:
    limits = RateLimits(8000, clock=Clock())
    limits.sent(slot := await limits.acquire(1))
    limits.learn({"x-ratelimit-limit-requests": "10000", "x-ratelimit-remaining-requests": "5000"})
    limits.went_well(slot)
    assert limits.window >= 5000


async def test_of_a_limit_in_tokens_the_window_opens_for_as_many_calls_as_are_left_of_this_size() -> None:
    limits = RateLimits(8000, clock=Clock())
    for _ in range(2):
        limits.sent(await limits.acquire(100))
    limits.learn({"x-ratelimit-limit-tokens": "100000", "x-ratelimit-remaining-tokens": "50000"})
    assert limits.window == 500


async def test_an_endpoint_that_names_no_limit_is_asked_as_much_as_before() -> None:
    limits = RateLimits(8000, clock=Clock())
    limits.sent(await limits.acquire(1))
    limits.learn({})
    assert limits.window == FIRST_WINDOW


async def test_after_a_refusal_a_large_limit_in_a_header_does_not_open_the_window() -> None:
    limits = RateLimits(8000, clock=(clock := Clock()))
    (slot,) = await sent(limits, 1)
    limits.refused(slot, 1)
    clock.now += 2
    window = limits.window
    limits.learn({"x-ratelimit-limit-requests": "10000", "x-ratelimit-remaining-requests": "5000"})
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


@pytest.mark.parametrize("seed", range(20))
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


async def test_an_ending_that_says_nothing_changes_nothing() -> None:
    limits = RateLimits(64, clock=Clock())
    limits.ended(*await slots(limits, 1))
    assert limits.window == FIRST_WINDOW and limits.in_flight == 0


async def test_a_window_of_one_serves_one_at_a_time() -> None:
    limits = RateLimits(1, clock=Clock())
    first, second = await limits.acquire(1), asyncio.create_task(limits.acquire(1))
    await settle_down()
    assert not second.done()
    limits.went_well(first)
    limits.ended(await at_once(second))
    assert limits.in_flight == 0


# --- pauses


@pytest.mark.parametrize("asked", [5.0, 300.0])
def test_a_pause_is_as_long_as_asked(asked: float) -> None:
    async def main() -> None:
        limits, loop = virtual_limits(), asyncio.get_running_loop()
        begun = loop.time()
        limits.refused(await limits.acquire(1), asked)
        await limits.acquire(1)
        assert asked <= loop.time() - begun < asked + 0.1

    virtually(main)


def test_who_is_asked_to_wait_longer_than_is_worth_it_hears_so_at_once_and_with_the_time() -> None:
    async def main() -> None:
        limits, loop = virtual_limits(), asyncio.get_running_loop()
        begun, both = loop.time(), await sent(limits, 2)
        limits.refused(both[0], 3600)
        alone = asyncio.create_task(limits.alone(3600))
        await settle_down()
        limits.refused(both[1], 3600)
        await alone
        for _ in range(2):
            with pytest.raises(WaitTooLong, match=r"nothing more for 60 minutes, until \d\d:\d\d, by its rate limit"):
                await limits.acquire(1)
        assert loop.time() == begun

    virtually(main)


def test_after_the_pause_of_a_full_endpoint_a_refused_call_waits_alone_again() -> None:
    async def main() -> None:
        limits, loop = virtual_limits(), asyncio.get_running_loop()
        limits.refused(await limits.acquire(1), 30)
        await limits.acquire(1)
        begun = loop.time()
        await limits.alone(5)
        assert loop.time() - begun >= 5

    virtually(main)


@pytest.mark.parametrize(("refusals", "longest"), [(0, 0.2), (1, 0.4), (5, 6.4), (30, LONGEST_PAUSE)])
def test_the_longest_wait_doubles_with_each_refusal(refusals: int, longest: float) -> None:
    waits = [seconds_alone(None, refusals) for _ in range(400)]
    assert min(waits) < 0.1 * longest < 0.9 * longest < max(waits) <= longest


def test_a_wait_that_was_asked_for_is_a_tenth_longer_at_most() -> None:
    waits = [seconds_alone(10.0, 30) for _ in range(400)]
    assert min(waits) >= 10 and 10.9 < max(waits) <= 11


def test_a_longer_pause_is_not_cut_short_by_a_shorter_one() -> None:
    async def main() -> None:
        limits, loop = virtual_limits(), asyncio.get_running_loop()
        begun, both = loop.time(), await sent(limits, 5)
        for number, slot in enumerate(both):
            limits.refused(slot, 1 if number == 4 else 30)
        await limits.acquire(1)
        assert loop.time() - begun >= 30

    virtually(main)


def test_after_a_pause_those_who_waited_come_within_the_window() -> None:
    async def main() -> None:
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

    virtually(main)


async def refused_after_answers(limits: RateLimits) -> None:
    """Sixty answers after a tenth of a second each, then a pause of two seconds."""
    for _ in range(60):
        limits.sent(slot := await limits.acquire(1))
        await asyncio.sleep(0.1)
        limits.went_well(slot)
    (slot,) = await sent(limits, 1)
    limits.refused(slot, 2)


def test_after_a_pause_they_come_one_by_one_over_the_time_that_an_answer_takes() -> None:
    async def main() -> None:
        limits, loop = virtual_limits(), asyncio.get_running_loop()
        await refused_after_answers(limits)
        came = list[float]()
        for _ in range(int(limits.window)):
            await limits.acquire(1)
            came.append(loop.time())
        assert len(came) > 4 and 0.05 < came[-1] - came[0] <= 0.11

    virtually(main)


def test_once_as_many_as_may_are_in_flight_again_the_others_come_as_slots_are_free() -> None:
    async def main() -> None:
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

    virtually(main)


@pytest.mark.parametrize(
    ("retry_after", "said"),
    [
        (5, []),
        (45, ["asks for a pause of 45 s (Retry-After); waiting 45 s, until "]),
        (600, ["asks for a pause of 10 minutes"] * 4),
    ],
)
def test_a_long_pause_is_told_and_told_again_with_its_reason(
    retry_after: float, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        limits = RateLimits(8, clock=asyncio.get_running_loop().time, rng=random.Random(0), name="http://there/v1")
        for _ in range(3):  # refused each time
            limits.refused(await limits.acquire(1), retry_after)
        limits.ended(await limits.acquire(1))

    virtually(main)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(said) and all(text in line for line, text in zip(lines, said, strict=True)), lines
    assert all(line.startswith("http://there/v1: ") for line in lines)


def test_a_limit_that_is_used_up_is_told_and_told_again_after_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        limits = RateLimits(8, tokens_per_minute=60, clock=asyncio.get_running_loop().time, name="there")
        for _ in range(4):
            limits.went_well(await limits.acquire(50))

    virtually(main)
    told = [record.getMessage().partition(", until")[0] for record in caplog.records]
    assert told == [f"there: rate limit used up; waiting {seconds} s" for seconds in (40, 50, 50)]


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


def test_a_limit_that_is_used_up_for_long_refuses_who_needs_it_and_lets_others_in() -> None:
    async def main() -> None:
        limits = virtual_limits()
        limits.tokens.learn(limit=1000, left=10, reset=86_400)
        asked = [asyncio.create_task(limits.acquire(tokens)) for tokens in (500, 5)]
        await settle_down()
        with pytest.raises(WaitTooLong, match=r"allows nothing more for 12 hours"):
            await asked[0]
        assert asked[1].done() and limits.in_flight == 1

    virtually(main)


# --- who waits


async def test_the_last_request_of_a_minute_is_let_in_at_once() -> None:
    limits = RateLimits(8, requests_per_minute=3, clock=Clock())
    assert len(await slots(limits, 3)) == 3
    waiting = asyncio.create_task(limits.acquire(1))
    await settle_down()
    assert not waiting.done()
    waiting.cancel()


def test_a_small_call_does_not_overtake_a_large_one() -> None:
    async def main() -> None:
        limits = virtual_limits(tokens=600)
        await limits.acquire(500)
        large, small = (asyncio.create_task(limits.acquire(tokens)) for tokens in (400, 5))
        await settle_down()
        assert not small.done()
        await large

    virtually(main)


def test_those_who_wait_are_let_in_in_order() -> None:
    async def main() -> None:
        limits, order = virtual_limits(tokens=600), list[int]()

        async def call(number: int, tokens: float) -> None:
            slot = await limits.acquire(tokens)
            order.append(number)
            limits.went_well(slot)

        sizes = [600, 500, 1, 300, 2, 2, 600, 1]
        await asyncio.gather(*(call(number, tokens) for number, tokens in enumerate(sizes)))
        assert order == sorted(order)

    virtually(main)


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


@pytest.mark.parametrize("seed", range(60))
def test_nobody_is_stuck_and_no_slot_leaks(seed: int) -> None:
    rng = random.Random(seed)

    async def use(limits: RateLimits) -> None:
        slot = await limits.acquire(rng.uniform(0, 300))
        end = rng.choice((limits.went_well, limits.ended, lambda slot: limits.refused(slot, rng.choice((None, 3.0)))))
        try:
            assert limits.in_flight <= limits.most
            await asyncio.sleep(rng.choice((0, 0.1, 2)))
        finally:
            end(slot)

    async def main() -> None:
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

    virtually(main)


def test_a_wait_says_until_when() -> None:
    begun = time.time()
    text = str(WaitTooLong(7200))
    moments = {time.strftime("until %H:%M", time.localtime(now + 7200)) for now in (begun, time.time())}
    assert any(moment in text for moment in moments)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(119, "119 s"), (120, "2 minutes"), (7200, "2 hours"), (172_800, "2 days"), (63_115_200, "2 years")],
)
def test_a_wait_is_told_in_the_largest_unit_that_it_has_twice(seconds: float, told: str) -> None:
    assert f"allows nothing more for {told}," in str(WaitTooLong(seconds))
