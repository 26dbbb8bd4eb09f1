"""The budget that keeps the caps: the worst case of a call is reserved before it is sent.

Arithmetic without disk or network. Money is in picodollars.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass

from refed_dspy.errors import CapReached

LEEWAY = 16
"""What is said to have taken more than so many times the most that it can have taken is not believed, but charged as
its worst case."""


@dataclass(frozen=True)
class Caps:
    """The most that a run may use, over all its starts. None: no limit."""

    max_cost: int | None = None
    max_calls: int | None = None


class Budget:
    """What is spent, what is reserved for calls in flight, and the queue of those that wait for some of it.

    The arguments `spent` and `calls` are what earlier starts used. A reservation that does not fit waits while calls
    are in flight, since most cost less than was reserved for them. Of those that wait, the lowest rank goes first.
    """

    def __init__(self, caps: Caps, spent: int = 0, calls: int = 0) -> None:
        self.caps, self.spent, self.calls = caps, spent, calls
        self.reserved = self.in_flight = 0
        self.reached: CapReached | None = None
        """Set once a cap was reached: from then on every reservation is refused."""
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    async def reserve(self, worst: int, rank: int = 0) -> None:
        """Reserve `worst` for one call. Raises CapReached."""
        if self.reached is None and not self._waiting and not self._cap_passed_by(worst):
            self._take(worst)
            return
        if self.reached is not None or not self.in_flight:
            raise self._close(worst)
        granted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._order), worst, granted))
        try:
            await granted
        except asyncio.CancelledError:
            self._wake()
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self.give_back(worst)  # it was granted at the same moment
            raise

    def allow(self, caps: Caps) -> None:
        """Continue under other caps."""
        self.caps, self.reached = caps, None
        self._wake()

    def settle(self, worst: int, cost: int) -> None:
        """Replace the reservation of a call by what it is charged."""
        self.spent += cost
        self._free(worst)

    def give_back(self, worst: int) -> None:
        """A call was never sent: it is neither charged nor counted."""
        self.calls -= 1
        self._free(worst)

    def adopt(self, cost: int) -> None:
        """A call that an earlier start sent is in flight again: what it was charged becomes its reservation."""
        self.spent -= cost
        self.reserved += cost
        self.in_flight += 1

    def forget(self, cost: int) -> None:
        """A call that an earlier start sent turned out not to be paid for."""
        self.spent -= cost
        self.calls -= 1
        self._wake()

    def recharge(self, before: int, cost: int) -> None:
        """A call that an earlier start sent is charged `cost` in place of `before`."""
        self.spent += cost - before
        self._wake()

    def _cap_passed_by(self, worst: int) -> str:
        """The cap that a further call could pass, or ""."""
        caps = self.caps
        if caps.max_calls is not None and self.calls >= caps.max_calls:
            return "max_calls"
        if caps.max_cost is not None and self.spent + self.reserved + worst > caps.max_cost:
            return "max_cost"
        return ""

    def _take(self, worst: int) -> None:
        self.reserved += worst
        self.in_flight += 1
        self.calls += 1

    def _free(self, worst: int) -> None:
        self.reserved -= worst
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        """Answer those who wait, lowest rank first, up to the first that must go on waiting."""
        while self._waiting:
            _, _, worst, granted = self._waiting[0]
            fits = self.reached is None and not self._cap_passed_by(worst)
            if not granted.cancelled():
                if fits:
                    self._take(worst)
                    granted.set_result(None)
                elif self.in_flight:  # they may cost less than was reserved for them
                    return
                else:
                    granted.set_exception(self._close(worst))
            heapq.heappop(self._waiting)

    def _close(self, worst: int) -> CapReached:
        """Refuse everything from now on, for the cap that was passed first. Returns the error to raise, a new one each
        time: an error collects the way of each raise."""
        self.reached = self.reached or CapReached(self._cap_passed_by(worst), worst)
        return CapReached(self.reached.cap, self.reached.worst_picodollars)
