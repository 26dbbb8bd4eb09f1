"""What an endpoint allows a minute: set, learned from headers, refilled."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest

from refed_dspy.teachers.rate_limits import PerMinute, RateLimits, seconds_from_now
from tests.support.clocks import Clock, in_virtual_time, virtual_limits

# --- limits per minute


def test_a_fixed_limit_refills_steadily_and_never_above_its_size() -> None:
    clock = Clock()
    limit = PerMinute(60, clock)
    assert limit.wait(60) == 0
    limit.take(60)
    assert limit.wait(1) == pytest.approx(1)
    clock.now += 0.5
    assert limit.wait(1) == pytest.approx(0.5)
    clock.now += 10_000
    assert limit.wait(60) == 0 and limit.left == 60


def test_an_unknown_limit_is_no_bound_until_it_is_learned() -> None:
    clock = Clock()
    limit = PerMinute(None, clock)
    limit.take(1e9)
    assert limit.wait(1e9) == 0
    limit.learn(limit=60, left=10, reset=50, age=2, sent_since=6)
    assert limit.left == 6, "the endpoint counted two seconds ago, and six were sent since"
    assert limit.wait(7) == pytest.approx(1)


def test_an_answer_that_was_overtaken_says_the_same() -> None:
    limit = PerMinute(None, Clock())
    limit.learn(60, 12, 48)
    limit.learn(60, 25, 35, sent_since=13)
    assert limit.left == 12
    limit.learn(60, 40, 20)
    assert limit.left == 40, "the endpoint counted fewer units than were guessed"


def test_headers_leave_a_fixed_limit_its_rate_but_take_from_what_is_left() -> None:
    clock = Clock()
    limit = PerMinute(60, clock)
    limit.learn(6000, 3, None)
    assert limit.left == 3 and limit.size == 60
    limit.learn(6000, 5999, None)
    assert limit.wait(4) == pytest.approx(1), "one a second, whatever the endpoint would take"


@pytest.mark.parametrize(
    ("limit", "left", "reset", "seconds"),
    [(200, 100, 43_200, 86_400), (3600, 1800, 5400, 3 * 3600), (5000, 4999, 0.012, 60)],
)
def test_a_limit_of_hours_or_a_day_is_told_by_its_long_reset(
    limit: int, left: int, reset: float, seconds: float
) -> None:
    per_minute = PerMinute(None, Clock())
    per_minute.learn(limit, left, reset)
    assert per_minute.rate == pytest.approx(limit / seconds)


def test_more_than_the_whole_limit_counts_as_the_whole() -> None:
    clock = Clock()
    limit = PerMinute(60, clock)
    assert limit.wait(10_000) == 0
    limit.take(10_000)
    assert limit.wait(10_000) == pytest.approx(60), "a minute, not forever"


@pytest.mark.parametrize("limit", [0, -1, 0.5])
def test_a_limit_of_nothing_is_none(limit: float) -> None:
    per_minute = PerMinute(None, Clock())
    per_minute.learn(limit, 0, 60)
    assert per_minute.wait(5) == 0


@pytest.mark.parametrize("seed", range(5))
def test_never_more_is_taken_than_the_size_and_what_was_refilled(seed: int) -> None:
    rng, clock = random.Random(seed), Clock()
    per_minute = rng.uniform(1, 1000)
    limit, taken, begun = PerMinute(per_minute, clock), 0.0, clock.now
    for _ in range(300):
        units = rng.uniform(0, per_minute)
        if limit.wait(units) == 0:
            limit.take(units)
            taken += units
        clock.now += rng.choice((0, 0.01, 3, limit.wait(units)))
        assert taken <= per_minute * (1 + (clock.now - begun) / 60) + 1e-6
        assert limit.left <= per_minute


# --- what headers say


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6m0s", 360), ("120ms", 0.12), ("1h2m3.5s", 3723.5), ("1d", 86_400), ("1.5", 1.5), ("0", 0), ("17s", 17)],
)
def test_spans_of_time_are_read(text: str, seconds: float) -> None:
    assert seconds_from_now(text) == pytest.approx(seconds)


def test_a_moment_is_read_as_the_time_until_it() -> None:
    moment = datetime.now(UTC) + timedelta(hours=1)
    for text in (moment.isoformat(), moment.strftime("%Y-%m-%dT%H:%M:%SZ")):
        assert seconds_from_now(text) == pytest.approx(3600, abs=60)
    assert seconds_from_now("2001-01-01T00:00:00Z") == 0


@pytest.mark.parametrize(
    "text", [None, "", "soon", "-", "Wed, 21 Oct 2026 07:28:00 GMT", "12monkeys", "-5s", "1_0", "٣", "٣s"]
)
def test_garbage_says_nothing(text: str | None) -> None:
    assert seconds_from_now(text) is None


OPENAI = {"x-ratelimit-{}-requests": "requests", "x-ratelimit-{}-tokens": "tokens"}
ANTHROPIC = {"anthropic-ratelimit-requests-{}": "requests", "anthropic-ratelimit-tokens-{}": "tokens"}


@pytest.mark.parametrize("names", [OPENAI, ANTHROPIC])
def test_both_families_of_headers_are_known(names: dict[str, str]) -> None:
    limits = RateLimits(8, clock=Clock())
    values = {"requests": {"limit": "60", "remaining": "9"}, "tokens": {"limit": "6000", "remaining": "70"}}
    limits.learn({name.format(what): value for name, unit in names.items() for what, value in values[unit].items()})
    assert (limits.requests.size, limits.requests.left) == (60, 9)
    assert (limits.tokens.size, limits.tokens.left) == (6000, 70)


@pytest.mark.parametrize("limit", ["unlimited", "", "60 per minute", "nan"])
def test_headers_that_cannot_be_read_bound_nothing(limit: str) -> None:
    limits = RateLimits(8, clock=Clock())
    unread = {"x-ratelimit-limit-requests": limit, "x-ratelimit-remaining-requests": "0"}
    limits.learn(unread | {"x-ratelimit-reset-requests": "inf"})
    limits.learn({"x-ratelimit-limit-tokens": "60"})  # nothing about what is left
    assert limits.requests.rate is None and limits.tokens.rate is None


# --- endpoints with limits of their own, in virtual time


class FixedWindow:
    """An endpoint that takes 60 requests in each minute of the clock, as many gateways do."""

    def __init__(self) -> None:
        self.minute, self.used, self.refused = -1, 0, 0

    async def call(self, limits: RateLimits) -> bool:
        loop, slot = asyncio.get_running_loop(), await limits.acquire(1)
        await asyncio.sleep(1)
        if (minute := int(loop.time() // 60)) != self.minute:
            self.minute, self.used = minute, 0
        reset = 60 - loop.time() % 60
        taken = self.used < 60
        self.used += taken
        headers = {"limit": "60", "remaining": f"{60 - self.used}", "reset": f"{reset:.0f}s"}
        limits.learn({f"x-ratelimit-{what}-requests": value for what, value in headers.items()})
        limits.went_well(slot) if taken else limits.refused(slot, reset)
        return taken


@in_virtual_time
@pytest.mark.parametrize("most", [4, 32])
async def test_a_limit_counted_minute_by_minute_is_used_well(most: int) -> None:
    limits, endpoint, loop = virtual_limits(most), FixedWindow(), asyncio.get_running_loop()
    begun = loop.time()

    async def call() -> None:
        while not await endpoint.call(limits):
            pass

    await asyncio.gather(*(call() for _ in range(300)))
    assert (loop.time() - begun) / 60 < 7, "five minutes' worth"
