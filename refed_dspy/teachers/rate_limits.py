"""Client-side rate limits of an endpoint: learned from its answers, obeyed by every call to it.

Three things hold a call back. A *window* of calls in flight grows by one for each round trip that went well and shrinks
by up to a half at a refusal, at most once a round trip (additive increase, multiplicative decrease). *Limits per
minute* of requests and tokens come from the settings or from the answers' headers and refill steadily. A *pause*
follows a refusal, for as long as the endpoint asks. Waiting calls get their slots one by one, in order.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

FIRST_WINDOW = 32
"""Calls in flight before the first answer: an unknown endpoint does not get all of them at once."""
RECENT_ENDINGS = 24
"""The share of refusals is taken over so many ended calls."""
LONGEST_PAUSE = 60.0
"""Seconds: no pause is longer, whatever a Retry-After says. Afterwards the endpoint is asked again."""
LONGER_THAN_A_MINUTE = 90.0
"""Seconds: a limit that takes longer to be full again is not one per minute."""
PATIENCE = 900.0
"""Seconds: after so long with nothing but refusals, or before so long a wait for a limit, a run ends in order."""
MIN_REFUSALS = 5
"""Refusals in a row without which an endpoint is not `hopeless`, however long they took."""
TOLD_FROM = 20.0
"""Seconds: a longer wait is told."""
log = logging.getLogger("refed_dspy.teachers")


class WaitTooLong(Exception):
    """The endpoint's limit is used up for longer than PATIENCE."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"allows nothing more for {seconds / 60:.0f} minutes")


class PerMinute:
    """A limit per minute that refills steadily (a token bucket). Unknown, and no bound, until it is set or learned."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self.rate: float | None = None if per_minute is None else per_minute / 60
        """Units a second."""
        self.size = self.left = 0.0 if per_minute is None else max(1.0, per_minute)
        self.taken = 0.0
        """Units of all calls so far."""
        self._fixed = per_minute is not None

    def wait(self, units: float) -> float:
        """Seconds until `units` are left. More than the whole limit counts as the whole."""
        if self.rate is None:
            return 0.0
        self._refill()
        lacking = min(units, self.size) - self.left
        return lacking / self.rate if lacking > 1e-9 else 0.0

    def take(self, units: float) -> None:
        """A call of so many units is sent."""
        self.taken += units
        self._refill()
        self.left -= min(units, self.size)

    def learn(
        self, limit: float, left: float, reset: float | None = None, age: float = 0.0, sent_since: float = 0.0
    ) -> None:
        """Learn from an answer's headers: the limit, what is left of it, and the seconds until it is full again.

        The endpoint counted when the call came in, `age` seconds ago; `sent_since` units were sent after it.
        """
        if limit < 1:
            return
        self._refill()
        per_second = limit / 60
        if reset and reset > LONGER_THAN_A_MINUTE and limit > left:
            per_second = min(per_second, (limit - left) / reset)  # a limit of an hour or a day
        if self._fixed:
            per_second = self.rate or per_second
        left_now = left + age * per_second - sent_since
        if self._fixed:
            self.left = min(self.left, left_now)
        else:
            self.rate, self.size, self.left = per_second, limit, min(limit, left_now)

    def _refill(self) -> None:
        now = self._clock()
        passed, self._at = now - self._at, now
        if self.rate is not None:
            self.left = min(self.size, self.left + passed * self.rate)


@dataclass(slots=True)
class Slot:
    """Permission to make one call: since when, and how many requests and tokens were sent until then."""

    since: float
    taken: tuple[float, float] = (0.0, 0.0)
    answered: bool = False
    """Whether anything came back."""


current_slot: ContextVar[Slot | None] = ContextVar("refed_slot", default=None)
"""The slot of the call that this task has sent last."""


class RateLimits:
    """The limits of one endpoint, for one event loop. `most`: the largest window; `name`: the endpoint's."""

    def __init__(
        self,
        most: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.most, self._clock, self._name = most, clock, name
        self._rng = rng or random.Random()
        self.window = float(min(most, FIRST_WINDOW))
        self.in_flight = 0
        self.requests = PerMinute(requests_per_minute, clock)
        self.tokens = PerMinute(tokens_per_minute, clock)
        self._paused_until = self._decreased_at = clock()
        self._asked_for = 0.0
        """Seconds of pause that the endpoint asked for last."""
        self._told = False
        """Whether people know that calls wait."""
        self._recent: deque[bool] = deque(maxlen=RECENT_ENDINGS)
        self._refused_since: float | None = None
        self._refusals = 0
        self._starting = True
        self._queue: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, tokens: float) -> Slot:
        """Wait until one call of about so many tokens may be sent. Raises WaitTooLong."""
        slot = Slot(self._clock())
        if not self._queue and self.in_flight < int(self.window) and self._wait(tokens) <= 0:
            self._take(tokens)
            return slot
        granted = asyncio.get_running_loop().create_future()
        self._queue.append((tokens, granted))
        self._grant_slots()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._release()
            self._grant_slots()  # the next in the queue may need less
            raise
        return slot

    def sent(self, slot: Slot) -> None:
        """The call is sent now: from here on its outcome says something about the endpoint."""
        slot.since = self._clock()
        slot.taken = (self.requests.taken, self.tokens.taken)
        current_slot.set(slot)

    def went_well(self, slot: Slot) -> None:
        """The call was answered: the window grows a little."""
        # Doubling each round trip until the first refusal, then one more each round trip.
        self.window = min(self.most, self.window + (1.0 if self._starting else 1.0 / self.window))
        self._recent.append(True)
        self._told = False
        self.ended(slot)

    def ended(self, slot: Slot) -> None:  # noqa: ARG002 — one signature for all that end a slot
        """The call ended in a way that says nothing about the limits."""
        self._refused_since, self._refusals = None, 0
        self._release()

    def refused(self, slot: Slot, retry_after: float | None) -> None:
        """The endpoint refused the call (429, 503, 529): shrink the window, and pause for as long as it asks."""
        now = self._clock()
        self._refused_since = self._refused_since or now
        self._refusals += 1
        self._recent.append(False)
        if slot.since >= self._decreased_at:  # else it was sent before the last decrease, and says nothing new
            # An endpoint that names a time has a limit, and it is reached. One that does not may refuse at random:
            # then the window shrinks by half the share that it refused lately (as DCTCP does).
            share = 1.0 if retry_after else self._recent.count(False) / len(self._recent)
            self.window = max(1.0, self.window * (1 - share / 2))
            self._decreased_at = now
        self._starting = False
        if retry_after:
            self._asked_for = retry_after
            self._paused_until = max(self._paused_until, now + min(LONGEST_PAUSE, retry_after))
        self._release()

    @property
    def hopeless(self) -> bool:
        """Whether nothing but refusals has come for `PATIENCE` seconds."""
        if self._refused_since is None or self._refusals < MIN_REFUSALS:
            return False
        return self._clock() - self._refused_since > PATIENCE

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take the limits from the headers (lower-case names) of the answer to the call that this task sent."""
        slot = current_slot.get() or Slot(self._clock(), (self.requests.taken, self.tokens.taken))
        age = self._clock() - slot.since
        limits = ((self.requests, "requests", slot.taken[0]), (self.tokens, "tokens", slot.taken[1]))
        for per_minute, unit, taken in limits:
            limit, left = (_number(_header(headers, unit, what)) for what in ("limit", "remaining"))
            if limit is not None and left is not None:
                reset = _seconds(_header(headers, unit, "reset"))
                per_minute.learn(limit, left, reset, age, per_minute.taken - taken)

    def _wait(self, tokens: float) -> float:
        pause = self._paused_until - self._clock()
        return max(pause, self.requests.wait(1), self.tokens.wait(tokens))

    def _take(self, tokens: float) -> None:
        self.in_flight += 1
        self.requests.take(1)
        self.tokens.take(tokens)

    def _release(self) -> None:
        self.in_flight -= 1
        self._grant_slots()

    def _grant_slots(self) -> None:
        """Give slots to the first in the queue while there is room; else look again when there may be."""
        while self._queue:
            tokens, granted = self._queue[0]
            if granted.done():  # cancelled meanwhile
                self._queue.popleft()
                continue
            if self.in_flight >= int(self.window):
                return  # the next call to end looks again
            if (wait := self._wait(tokens)) > PATIENCE:
                self._queue.popleft()
                granted.set_exception(WaitTooLong(wait))
                continue
            if wait > 0:
                self._tell(wait)
                self._look_again(wait)
                return
            self._queue.popleft()
            self._take(tokens)
            granted.set_result(None)

    def _tell(self, wait: float) -> None:
        """Say why calls wait so many seconds, if that is long. Said once until a call goes well."""
        if self._told or wait < TOLD_FROM:
            return
        self._told = True
        if wait > self._paused_until - self._clock() + 1:
            log.warning("%s: rate limit used up; waiting %.0f s", self._name, wait)
            return
        log.warning(
            "%s: rate limit reached, asks for a pause of %s (Retry-After); waiting %.0f s, then trying again",
            self._name,
            _span(self._asked_for),
            wait,
        )

    def _look_again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # With jitter: a burst that was refused together does not come back at one moment.
        delay = seconds + 0.01 * self._rng.random()
        self._timer = asyncio.get_running_loop().call_later(delay, self._grant_slots)


def _header(headers: Mapping[str, str], unit: str, what: str) -> str | None:
    return headers.get(f"x-ratelimit-{what}-{unit}") or headers.get(f"anthropic-ratelimit-{unit}-{what}")


_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def _number(text: str | None) -> float | None:
    """A finite number, or None. Python alone takes `1_0` and the digits of other scripts for numbers, too."""
    number = float(text) if text is not None and _NUMBER.fullmatch(text.strip()) else math.nan
    return number if math.isfinite(number) else None


def _span(seconds: float) -> str:
    """So many seconds for people."""
    for unit, length in (("years", 31_557_600), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])")
_EPOCH = 1e9
"""A number as large as this is a point in time, in seconds since 1970."""


def _seconds(text: str | None) -> float | None:
    """Seconds from now: of `6m0s`, `120ms`, `1.5`, or until a time (RFC 3339, or seconds since 1970). Else None."""
    if not text:
        return None
    if re.fullmatch(f"({_SPAN.pattern})+", text):
        return sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(text))
    if (number := _number(text)) is not None:
        return max(0.0, number - time.time() if number > _EPOCH else number)
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - time.time())
    except ValueError:
        return None
