"""The account of one shard: what it may have, what it has, and who works on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

UNLIMITED = 2**62
"""Stands where there is no cap: SQLite can hold it, and nobody uses as much."""


class Amounts(NamedTuple):
    """Samples kept, picodollars charged and calls made by a shard in all its starts; or bounds of the three."""

    kept: int
    spent: int
    calls: int

    def at_least(self, other: Amounts) -> Amounts:
        """Of each the larger one."""
        return Amounts(max(self.kept, other.kept), max(self.spent, other.spent), max(self.calls, other.calls))


NOTHING, UNKNOWN = Amounts(0, 0, 0), Amounts(-1, -1, -1)


class State(StrEnum):
    """Whether somebody works on a shard. `LOST`: its holder died or left without a word, so that what it really used is
    known once its next holder has looked."""

    FREE = "free"
    HELD = "held"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of one shard. Whatever happens to it makes another account."""

    shard: int
    used: Amounts = NOTHING
    """What it had by the last word of a holder."""
    granted: Amounts = NOTHING
    """The most that it can have come to, which is what counts against the run's size and caps."""
    bounds: Amounts = NOTHING
    """What its last lease allows. Less than `granted` where the size or a cap became lower than what was granted to a
    holder that died: what that one used is granted until the next one has told."""
    begun: Amounts = NOTHING
    """What it had when its last lease began; UNKNOWN where the holder before died."""
    state: State = State.FREE
    worker: str = ""
    """Who has its last lease, or had it."""
    epoch: int = 0
    """How many leases of it there were."""
    dry: bool = False
    """Whether its references gave nothing more in this job."""
    stuck: bool = False
    """Whether a lease of this job moved nothing: there is no use in the same again."""

    def leased(self, worker: str, bounds: Amounts) -> Account:
        """`worker` may go on until the shard has so much in all."""
        return replace(
            self, bounds=bounds, granted=self.granted.at_least(bounds), state=State.HELD, worker=worker,
            begun=UNKNOWN if self.state is State.LOST else self.used, epoch=self.epoch + 1,
        )  # fmt: skip

    def reported(self, used: Amounts) -> Account:
        """Its holder has looked: it has so much."""
        return replace(self, used=used, granted=self.bounds.at_least(used))

    def given_back(self, used: Amounts, dry: bool) -> Account:
        """Its holder has ended, and leaves it with so much. One that was believed dead may have been held up: its
        lease says nothing about the shard. Calls count as a move only where they are capped: an endpoint that fails
        for nothing would be asked for ever."""
        moved = used.kept > self.begun.kept or used.spent > self.begun.spent
        moved |= self.bounds.calls < UNLIMITED and used.calls > self.begun.calls
        stuck = self.state is State.HELD and not moved and not dry
        return replace(self, used=used, granted=used, bounds=used, state=State.FREE, dry=dry, stuck=stuck)

    def lost(self) -> Account:
        """Its holder, if it has one, is gone."""
        return replace(self, state=State.LOST) if self.state is State.HELD else self

    def in_new_job(self) -> Account:
        """Nobody of the job before is there. What gave nothing then may give something now, as in any run's next
        start."""
        return replace(self.lost(), dry=False, stuck=False)
