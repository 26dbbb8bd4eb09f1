"""A limit per minute, and how endpoints write theirs in the headers of an answer."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime

LONGER_THAN_A_MINUTE = 90.0
"""Seconds: a limit that takes longer to be full again is not one per minute."""


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


_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def number(text: str | None) -> float | None:
    """A finite number, or None. Python alone takes `1_0` and the digits of other scripts for numbers, too."""
    value = float(text) if text is not None and _NUMBER.fullmatch(text.strip()) else math.nan
    return value if math.isfinite(value) else None


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])")
_EPOCH = 1e9
"""A number as large as this is a point in time, in seconds since 1970."""


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
