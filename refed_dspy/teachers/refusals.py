"""Whether an endpoint that refuses a call is full, or refuses some at random.

A full endpoint refuses every call from some moment on; one that refuses at random (a shared pool of hosted models, say)
answers others that were sent later. So calls are looked at in the order in which they were sent: refusals in a row mean
a full endpoint where so many would hardly be chance, given the share that it refused at random so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HARDLY_CHANCE, AGAIN = 1e-4, 0.03
"""So improbable must a row of refusals be, if they came at random, for the endpoint to count as full; and to count as
full AGAIN, within the next LATELY answers."""
LATELY = 50
MOST = 24
"""So many refusals in a row are a full endpoint, whatever the share."""
REMEMBERED = 400
"""Calls over which the share of random refusals is taken, about."""


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


class Refusals:
    """Which of the latest calls to one endpoint it refused, and how many of them at random."""

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


HOLD_FROM, OF_IN_FLIGHT = 3, 32
"""So many calls in a row without an answer, or one in 32 of those in flight, and all others are held back."""
PROBES = 6
"""After so many more, sent one at a time over half a minute, nobody is asked any more: each may have been billed. With
fewer `retries` than four, after as many fewer."""


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
