"""Outages: for how long a teacher that is down is not asked."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from refed_dspy.errors import one_line

log = logging.getLogger("refed_dspy.teachers")
FIRST_OUTAGE, LONGEST_OUTAGE = 30.0, 900.0
"""Seconds for which a teacher that went down is not asked: twice as long each time, up to a quarter of an hour."""


class Outage:
    """Whether one teacher is down, and when it is tried again. Times are the clock's, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds = 0.0
        """How long it is not asked in this outage, or was not in the last one."""
        self._until: float | None = None
        self._recovered = -math.inf
        self._probing = False

    @property
    def down(self) -> bool:
        return self._until is not None

    def may_ask(self) -> bool:
        """Whether to ask it: it is up, or its time is over and this is the one question that probes it."""
        if self._until is None:
            return True
        if self._probing or self._clock() < self._until:
            return False
        self._probing = True
        return True

    def went_down(self, who: str, why: str) -> None:
        """`begin`, and say so where it was up until now."""
        if self.begin():
            log.warning(
                "%s does not answer (%s); its questions go to the others; trying it again in %.0f s",
                who,
                one_line(why, 200),
                self.seconds,
            )

    def answered(self, who: str, was_down: bool) -> None:
        """It answered. `was_down`: it was down when it was asked; then it is up again, and that is said."""
        if was_down and self.down:
            self.end()
            log.warning("%s answers again", who)

    def begin(self) -> bool:
        """It did not answer. Returns whether it was up until now. An outage soon after the last one is longer."""
        now, was_up = self._clock(), self._until is None
        if not was_up and not self._probing:
            return False  # it was asked before it went down
        lately = not was_up or now - self._recovered < self.seconds
        self.seconds = min(LONGEST_OUTAGE, 2 * self.seconds) if lately else FIRST_OUTAGE
        self._until, self._probing = now + self.seconds, False
        return was_up

    def end(self) -> None:
        """It answered."""
        self._until, self._probing, self._recovered = None, False, self._clock()

    def probe_again(self) -> None:
        """The question that probed it ended before it answered or failed."""
        self._probing = False
