"""Client-side rate limits of an endpoint: learned from its answers, obeyed by every call to it.

Three things hold a call back. A *window* of calls in flight opens with the answers, and shrinks by half the share of
calls that was refused, at most once a round trip (additive increase, multiplicative decrease). *Limits per minute* of
requests and tokens come from the settings or from the answers' headers and refill steadily. A *pause* of all calls, for
as long as the endpoint asks, begins where it is full (`RefusedCalls`); a call refused at random waits alone. And where
calls get no answer at all, one is sent at a time until one is answered: such calls may be billed. Waiting calls get
their slots one by one, in order.
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
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

LONGER_THAN_A_MINUTE = 90.0
"""Seconds: a limit that takes longer to be full again is not one per minute."""
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])")
_EPOCH = 1e9
"""A number as large as this is a point in time, in seconds since 1970."""
HARDLY_CHANCE, AGAIN = 1e-4, 0.03
"""So improbable must a row of refusals be, if they came at random, for the endpoint to count as full; and to count as
full AGAIN, within the next LATELY answers."""
LATELY = 50
MOST = 24
"""So many refusals in a row are a full endpoint, whatever the share."""
REMEMBERED = 400
"""Calls over which the share of random refusals is taken, about."""
HOLD_FROM, OF_IN_FLIGHT = 3, 32
"""So many calls in a row without an answer, or one in 32 of those in flight, and all others are held back."""
PROBES = 6
"""After so many more, sent one at a time over half a minute, nobody is asked any more: each may have been billed. With
fewer `retries` than four, after as many fewer."""
FIRST_WINDOW = 32
"""Calls in flight before the first answer: an unknown endpoint does not get all of them at once."""
RECENT_ENDINGS = 24
"""The share of refusals is taken over so many ended calls."""
OPENING = 3.0
"""Calls that each answer adds to the window until the endpoint is first full: four times as many each round trip."""
GROWTH = 1 / 16
"""The part of the window that each round trip adds after that, beside one call: it makes up for an eighth refused."""
SPREAD = 1.0
"""Seconds: the window fills again over an answer's time, or so long, after a pause. A refusal may stop the rest."""
LONGEST_PAUSE = 60.0
"""Seconds: no call waits longer alone, whatever a Retry-After says; then it is tried again."""
PATIENCE = 900.0
"""Seconds: after so long with nothing but refusals, or before so long a wait for a limit, a run ends in order."""
MIN_REFUSALS = 5
"""Refusals in a row without which an endpoint is not `hopeless`, however long they took."""
TOLD_FROM = 20.0
"""Seconds: a longer wait is told."""
TOLD_AGAIN = 300.0
"""Seconds until a wait is told again."""
log = logging.getLogger("refed_dspy.teachers")
current_slot: ContextVar[Slot | None] = ContextVar("refed_slot", default=None)
"""The slot of the call that this task has sent last."""


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


def header(headers: Mapping[str, str], unit: str, what: str) -> str | None:
    return headers.get(f"x-ratelimit-{what}-{unit}") or headers.get(f"anthropic-ratelimit-{unit}-{what}")


def number(text: str | None) -> float | None:
    """A finite number, or None. Python alone takes `1_0` and the digits of other scripts for numbers, too."""
    value = float(text) if text is not None and _NUMBER.fullmatch(text.strip()) else math.nan
    return value if math.isfinite(value) else None


def seconds_from_now(text: str | None) -> float | None:
    """Seconds from now: of `6m0s`, `120ms`, `1.5`, or until a time (RFC 3339, or seconds since 1970). Else None."""
    if not text:
        return None
    if re.fullmatch(f"({_SPAN.pattern})+", text):
        return sum(float(count) * _UNITS[unit] for count, unit in _SPAN.findall(text))
    if (value := number(text)) is not None:
        return max(0.0, value - time.time() if value > _EPOCH else value)
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - time.time())
    except ValueError:
        return None


@dataclass(slots=True, eq=False)
class Slot:
    """Permission to make one call: since when, and how many requests and tokens were sent until then."""

    since: float
    taken: tuple[float, float] = (0.0, 0.0)
    left: bool = False
    """Whether a byte of the request has left: before that it cannot be billed."""
    answered: bool = False
    """Whether anything came back."""
    number: int = 0
    """Of the call, in the order of sending."""


class RefusedCalls:
    """Which of the latest calls to one endpoint it refused, and how many of them at random.

    A full endpoint refuses every call from some moment on; one that refuses at random (a shared pool of hosted models,
    say) answers others that were sent later. So calls are looked at in the order in which they were sent: refusals in a
    row mean a full endpoint where so many would hardly be chance, given the share that it refused at random so far.
    """

    def __init__(self) -> None:
        self._sent = 0
        self._refused: dict[int, bool] = {}
        """Number of a refused call → whether it counts as refused at random."""
        self._answered = self._by_chance = 0.0
        self._since_full = LATELY
        """Answers since it was full last."""

    def sent(self, slot: Slot) -> None:
        self._sent += 1
        slot.number = self._sent

    def answered(self) -> None:
        self._answered += 1
        self._since_full += 1
        if self._answered + self._by_chance > REMEMBERED:
            self._answered, self._by_chance = self._answered / 2, self._by_chance / 2
            self._refused = {n: by_chance for n, by_chance in self._refused.items() if n > self._sent - 10 * REMEMBERED}

    @property
    def share(self) -> float:
        """The share of calls that are refused at random; a tenth where nothing is known."""
        return (self._by_chance + 1) / (self._answered + self._by_chance + 10)

    def refused(self, slot: Slot) -> bool:
        """Count a refusal. Returns whether the endpoint is full."""
        row = self._row(slot.number)
        for number in row:  # what is in question says nothing of the share
            self._by_chance -= self._refused.get(number, False)
        self._by_chance = max(0.0, self._by_chance)
        improbable = AGAIN if self._since_full < LATELY else HARDLY_CHANCE
        full = len(row) >= min(MOST, math.log(improbable) / math.log(self.share))
        self._since_full = 0 if full else self._since_full
        self._refused |= dict.fromkeys(row, not full)
        self._by_chance += 0 if full else len(row)
        return full

    def _row(self, number: int) -> range:
        """The numbers of the refused calls that were sent one after another, this one among them."""
        first, end = number, number + 1
        while first - 1 in self._refused and end - first < MOST:
            first -= 1
        while end in self._refused and end - first < MOST:
            end += 1
        return range(first, end)


@dataclass
class Silence:
    """Calls in a row that got no answer: a connection was dropped, or the time was over."""

    most: int = PROBES
    calls: int = 0
    holds_from: int = HOLD_FROM
    probes: int = 0
    why: str = ""
    """What became of the last one."""

    @property
    def holds(self) -> bool:
        """Whether one call is sent at a time."""
        return self.calls >= self.holds_from

    @property
    def lasts(self) -> bool:
        """Whether to stop asking."""
        return self.probes > self.most

    def lengthen(self, in_flight: int, why: str) -> float:
        """Another call got no answer, one of so many `in_flight`. Returns for how many seconds none is to be sent."""
        if not self.calls:
            self.holds_from = max(HOLD_FROM, in_flight // OF_IN_FLIGHT)
        self.calls, self.why = self.calls + 1, why
        if not self.holds or in_flight > 1:
            return 0.0
        self.probes += 1
        return 0.25 * 2.0 ** min(self.probes, PROBES)

    def end(self) -> None:
        """An answer came."""
        self.calls = self.probes = 0


class NoSlot(Exception):
    """No call can be sent for longer than is worth waiting."""


class WaitTooLong(NoSlot):
    """The endpoint's limit is used up for longer than PATIENCE."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"allows nothing more for {_span(seconds)}{_until(seconds)}, by its rate limit")


class Silent(NoSlot):
    """No answer came to many calls in a row."""

    def __init__(self, silence: Silence) -> None:
        super().__init__(f"did not answer the last {silence.calls} calls ({silence.why}), so no more are sent now")


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
        probes: int = PROBES,
    ) -> None:
        self.most, self._clock, self._name = most, clock, name
        self._rng = rng or random.Random()
        self.window = float(min(most, FIRST_WINDOW))
        self.in_flight = 0
        self.requests = PerMinute(requests_per_minute, clock)
        self.tokens = PerMinute(tokens_per_minute, clock)
        self._paused_until = self._decreased_at = self._full_at = self._next_at = clock()
        self._asked_for = 0.0
        """Seconds of pause that the endpoint asked for last."""
        self._told_at: float | None = None
        """When people were told that calls wait; None: they do not know."""
        self._recent: deque[bool] = deque(maxlen=RECENT_ENDINGS)
        self._at_random = RefusedCalls()
        self.silence = Silence(probes)
        self._latency = 0.0
        """Seconds that an answer takes, at most SPREAD."""
        self._full = asyncio.Event()
        """Set when the endpoint is full: whoever waits alone waits with all others from then on."""
        self._refused_since: float | None = None
        self._refusals = 0
        self._starting, self._filling = True, False
        self._queue: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, tokens: float, again: bool = False) -> Slot:
        """Wait until one call of about so many tokens may be sent; `again`: before others, since it was refused.

        Raises NoSlot."""
        slot = Slot(self._clock())
        if not self._queue and self.in_flight < self._room and self._wait(tokens) <= 0:
            self._take(tokens)
            return slot
        granted = asyncio.get_running_loop().create_future()
        (self._queue.appendleft if again else self._queue.append)((tokens, granted))
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
        self._at_random.sent(slot)
        current_slot.set(slot)

    def went_well(self, slot: Slot) -> None:
        """The call was answered: the window grows a little."""
        self._open(self.window + (OPENING if self._starting else 1 / self.window + GROWTH))
        self._latency += 0.1 * (min(SPREAD, self._clock() - slot.since) - self._latency)
        self._recent.append(True)
        self._at_random.answered()
        self._told_at = None
        self.ended(slot)

    def ended(self, slot: Slot) -> None:
        """The call ended in a way that says nothing about the limits."""
        self._refused_since, self._refusals = None, 0
        if slot.answered:
            self.silence.end()
        self._release()

    def unanswered(self, slot: Slot, why: str) -> None:  # noqa: ARG002 — one signature for all that end a slot
        """The call was sent, and no answer came."""
        self._pause(self.silence.lengthen(self.in_flight, why))
        if self.silence.calls == self.silence.holds_from:
            told = "%s: no answer to %d calls in a row (%s); sending one at a time until one is answered"
            log.warning(told, self._name, self.silence.calls, why)
        self._release()

    def refused(self, slot: Slot, retry_after: float | None) -> None:
        """The endpoint refused the call (429, 503, 529): shrink the window, and where it is full let all calls pause as
        long as it asks."""
        now = self._clock()
        self._refused_since = self._refused_since or now
        self._refusals += 1
        self.silence.end()
        self._recent.append(False)
        # Where nothing else is in flight no answer can show that it was chance.
        full = self._at_random.refused(slot) or (self.in_flight == 1 and bool(retry_after))
        self._shrink(slot, full)
        if full:
            self._starting, self._asked_for = False, retry_after or 0.0
            self._pause(self._asked_for)
            if retry_after:
                self._full.set()
        self._release()

    def not_reached(self, slot: Slot) -> None:
        """No connection could be made, so nothing was billed: there may be too many at once."""
        self._recent.append(False)
        self._starting = False
        self._shrink(slot, full=False)
        self._release()

    def _shrink(self, slot: Slot, full: bool) -> None:
        # A call that was sent before the last decrease says nothing new.
        if slot.since >= (self._full_at if full else self._decreased_at):
            share = 1.0 if full else self._recent.count(False) / len(self._recent)  # as DCTCP does
            self.window = max(1.0, self.window * (1 - share / 2))
            self._decreased_at = self._clock()
            self._full_at = self._decreased_at if full else self._full_at

    def _pause(self, seconds: float) -> None:
        self._paused_until, self._filling = max(self._paused_until, self._clock() + seconds), True

    async def alone(self, seconds: float) -> None:
        """Wait so long, as a call does that was refused by itself: until the endpoint is full at most."""
        if self._clock() >= self._paused_until:
            self._full.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(LONGEST_PAUSE, seconds)):
                await self._full.wait()

    @property
    def hopeless(self) -> bool:
        """Whether nothing but refusals has come for `PATIENCE` seconds."""
        if self._refused_since is None or self._refusals < MIN_REFUSALS:
            return False
        return self._clock() - self._refused_since > PATIENCE

    @property
    def _room(self) -> int:
        """How many calls may be in flight."""
        return 1 if self.silence.holds else int(self.window)

    def _open(self, window: float) -> None:
        self.window = min(self.most, window)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take the limits from the headers (lower-case names) of the answer to the call that this task sent."""
        slot = current_slot.get() or Slot(self._clock(), (self.requests.taken, self.tokens.taken))
        age = self._clock() - slot.since
        limits = ((self.requests, "requests", slot.taken[0]), (self.tokens, "tokens", slot.taken[1]))
        room = math.inf
        for per_minute, unit, taken in limits:
            limit, left = (number(header(headers, unit, what)) for what in ("limit", "remaining"))
            if limit is not None and left is not None:
                reset = seconds_from_now(header(headers, unit, "reset"))
                per_minute.learn(limit, left, reset, age, per_minute.taken - taken)
                room = min(room, per_minute.left * self.requests.taken / max(1.0, per_minute.taken))
        if self._starting and room < math.inf:
            self._open(max(self.window, room))  # so many it takes at once, by its own words

    def _wait(self, tokens: float) -> float:
        pause = max(self._paused_until, self._next_at) - self._clock()
        return max(pause, self.requests.wait(1), self.tokens.wait(tokens))

    def _take(self, tokens: float) -> None:
        self.in_flight += 1
        if self._filling:
            self._next_at = self._clock() + self._latency / self.window
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
            if (wait := self._wait(tokens)) > PATIENCE:
                self._refuse_first(WaitTooLong(wait))
            elif self.silence.lasts:
                self._refuse_first(Silent(self.silence))
            elif self.in_flight >= self._room:
                self._filling = False
                return  # the next call to end looks again
            elif wait > 0:
                self._tell(wait)
                self._look_again(wait)
                return
            else:
                self._queue.popleft()
                self._take(tokens)
                granted.set_result(None)

    def _refuse_first(self, error: NoSlot) -> None:
        _, granted = self._queue.popleft()
        granted.set_exception(error)

    def _tell(self, wait: float) -> None:
        """Say why calls wait so many seconds, if that is long. Said again every few minutes until a call goes well."""
        if wait < TOLD_FROM or (self._told_at is not None and self._clock() - self._told_at < TOLD_AGAIN):
            return
        self._told_at = self._clock()
        if wait > self._paused_until - self._clock() + 1:
            log.warning("%s: rate limit used up; waiting %.0f s%s", self._name, wait, _until(wait))
            return
        log.warning(
            "%s: rate limit reached, asks for a pause of %s (Retry-After); waiting %.0f s%s, then trying again",
            self._name,
            _span(self._asked_for),
            wait,
            _until(wait),
        )

    def _look_again(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # With jitter: a burst that was refused together does not come back at one moment.
        delay = min(TOLD_AGAIN, seconds) + min(0.01, 0.1 * seconds) * self._rng.random()
        self._timer = asyncio.get_running_loop().call_later(delay, self._grant_slots)


def _span(seconds: float) -> str:
    """So many seconds for people."""
    for unit, length in (("years", 31_557_600), ("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def _until(seconds: float) -> str:
    """The time of day in so many seconds; "" where that is not within a day."""
    return time.strftime(", until %H:%M", time.localtime(time.time() + seconds)) if seconds < 80_000 else ""


def seconds_alone(retry_after: float | None, refusals: int) -> float:
    """Seconds that a call waits after a refusal: as told, and a little more; else exponentially, with full jitter."""
    backoff = random.uniform(0, min(LONGEST_PAUSE, 0.2 * 2 ** min(refusals, 9)))
    return retry_after + min(backoff, 0.1 * retry_after) if retry_after else backoff
