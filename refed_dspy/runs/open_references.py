"""The references that a plan works on: which of them can go on, and how many samples they can still give.

Both are kept up to date as units end (`changed`), so that a unit costs as much with ten thousand open references as
with ten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

FEEDBACK_KINDS = ("features", "response")
"""What studying a reference gives: feedback on its instruction (one text a feature), and on its response."""


_ALL_FEEDBACK = frozenset(FEEDBACK_KINDS)


@dataclass(eq=False, slots=True)
class PlannedReference:
    """A reference, as the plan sees it. `ready` outlives a round: what one round did not need, the next uses first.

    Its lists are short, and small where they are empty: there may be a hundred thousand references.
    """

    index: int
    round: int = 0
    share: int = 0
    """Samples that it may give in its round."""
    missing_feedback: frozenset[str] = _ALL_FEEDBACK
    to_study: list[str] = field(default_factory=list)
    studying: int = 0
    to_propose: list[str] = field(default_factory=list)
    proposing: int = 0
    ready: list[tuple[int, str]] = field(default_factory=list)
    responding: int = 0
    kept_this_round: int = 0
    new: int = 0
    empty_rounds: int = 0
    warm: bool = False
    """Whether a response of this round has ended, so that its prompts' prefixes are cached."""
    failed: bool = False
    retired: bool = False
    place: int = -1
    """Its place among all that were ever opened; -1: it is not open."""
    counted: tuple[int, int] = (0, 0)
    """Its part of `OpenReferences.asked` and `.planned`."""

    @property
    def busy(self) -> bool:
        return bool(self.studying or self.proposing or self.responding or self.to_study or self.to_propose)

    @property
    def is_open(self) -> bool:
        return self.place >= 0


class OpenReferences:
    """The open references. `each`: instructions that a synthesis call gives; `lead`: see `PlanSettings.lead`."""

    def __init__(self, each: int, lead: bool) -> None:
        self._each, self._lead = each, lead
        self._open: dict[int, PlannedReference] = {}
        self._places = count()
        self.asked = self.planned = 0
        """Samples to expect of what is ready and what was asked for; and with what is still to be asked for."""
        self.to_respond = _First(self._can_respond)
        self.to_study = _First(lambda source: bool(source.to_study))
        self.to_propose = _First(self._can_propose)

    def room(self, source: PlannedReference) -> int:
        """Samples this reference may still give in its round."""
        return max(0, source.share - source.kept_this_round - source.responding)

    def usable(self, source: PlannedReference) -> bool:
        """Whether it has an instruction left for its round."""
        return bool(source.ready) and self.room(source) > 0 and not source.failed

    def add(self, source: PlannedReference) -> None:
        source.place = next(self._places)
        self._open[source.index] = source
        self.changed(source)

    def remove(self, source: PlannedReference) -> None:
        del self._open[source.index]
        source.place = -1
        self._count(source, 0, 0)

    def changed(self, source: PlannedReference) -> None:
        """To be called after each change of an open reference."""
        room, ready = self.room(source), len(source.ready)
        asked = ready + source.proposing * self._each
        self._count(source, min(room, asked), min(room, asked + len(source.to_propose) * self._each))
        for queue in (self.to_respond, self.to_study, self.to_propose):
            queue.offer(source)

    def expect(self, each: int) -> None:
        """From now on a synthesis call is expected to give `each` instructions."""
        if each != self._each:
            self._each = each
            for source in self._open.values():
                self.changed(source)

    def _count(self, source: PlannedReference, asked: int, planned: int) -> None:
        self.asked += asked - source.counted[0]
        self.planned += planned - source.counted[1]
        source.counted = asked, planned

    def _can_respond(self, source: PlannedReference) -> bool:
        waits = self._lead and source.responding and not source.warm
        return self.usable(source) and not source.missing_feedback and not waits

    def _can_propose(self, source: PlannedReference) -> bool:
        waits = self._lead and source.proposing
        return bool(source.to_propose) and "features" not in source.missing_feedback and not waits


class _First:
    """The first open reference that `can` do something. Those that no longer can are dropped when they are met."""

    def __init__(self, can: Callable[[PlannedReference], bool]) -> None:
        self._can = can
        self._heap: list[tuple[int, PlannedReference]] = []
        self._places: set[int] = set()

    def offer(self, source: PlannedReference) -> None:
        """Take up an open reference that can do it now."""
        if source.place not in self._places and self._can(source):
            self._places.add(source.place)
            heappush(self._heap, (source.place, source))

    def get(self) -> PlannedReference | None:
        while self._heap:
            place, source = self._heap[0]
            if source.place == place and self._can(source):
                return source
            heappop(self._heap)
            self._places.discard(place)
        return None


class Round:
    """The references that are still to be opened in a round, by their turns. Those open from the last round are passed
    over until they are closed: a round does not wait for them."""

    def __init__(self, turns: Iterable[tuple[int, PlannedReference]], share: Callable[[int], int]) -> None:
        """`share`: turn → the samples that the reference may give in this round."""
        self._heap, self._share = list(turns), share
        self._turns = {source.index: turn for turn, source in self._heap}

    def __bool__(self) -> bool:
        return bool(self._turns)

    def take(self) -> PlannedReference | None:
        """The next one, with its share, or None where all of them are open."""
        while self._heap:
            turn, source = heappop(self._heap)
            if not source.is_open and self._turns.pop(source.index, None) is not None:
                source.share = self._share(turn)
                return source
        return None

    def closed(self, source: PlannedReference) -> None:
        """A reference was closed: where it was passed over, it has its turn now, unless it has retired."""
        if source.retired:
            self._turns.pop(source.index, None)
        elif (turn := self._turns.get(source.index)) is not None:
            heappush(self._heap, (turn, source))
