"""The accounting of grants: which shard a worker gets, and how many samples, dollars and calls with it.

Every number is absolute, what a shard may have in all its starts, so that whatever is told twice counts once. At any
moment the sums of what is granted are within the run's size and caps, and a shard has one holder at most. Pure
bookkeeping: no clock, no network, no disk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, NamedTuple

UNLIMITED = 2**62
"""Stands where there is no cap: SQLite can hold it, and nobody uses as much."""
SEVERAL = 4
"""A lease allows so many of the dearest calls at least, while there is as much: with less its calls would go one by
one, each waiting for what the last one's worst case gives back."""


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


@dataclass(frozen=True)
class Lease:
    """The right to work on a shard until it has `size` samples, or has cost `max_cost` picodollars or `max_calls` calls
    (None: no cap), each over all its starts. After a holder that died they may be what the shard has already: then
    there is only to look, and to give it back. `workers`: how many there were when it was asked for, who share what an
    endpoint allows a minute.
    """

    shard: int
    epoch: int
    size: int
    max_cost: int | None
    max_calls: int | None
    workers: int = field(default=1, compare=False)

    @classmethod
    def of(cls, account: Account, workers: int) -> Lease:
        """The last lease of a shard."""
        size, *caps = account.bounds
        max_cost, max_calls = (None if cap >= UNLIMITED else cap for cap in caps)
        return cls(account.shard, account.epoch, size, max_cost, max_calls, workers)


class Reply(StrEnum):
    """What a worker hears that reports: to go on; to end in order and give its lease back; or that the lease is not its
    own (any more), so that it must end at once."""

    GO_ON = "go on"
    STOP = "stop"
    NOT_YOURS = "not yours"


@dataclass(frozen=True)
class Cap:
    """A cap on what all shards use of one thing: of `field` in their amounts. `most` None: there is none. `least`: what
    the dearest call may take of it."""

    field: Literal["spent", "calls"]
    most: int | None
    least: int

    def bound(self, account: Account, accounts: Sequence[Account], ways: int, last: bool) -> int | None:
        """How much of it `account` may have in all, with a `ways`-th part of what nobody was granted; None where that
        is too little to work with. `last`: nobody holds a lease, so no more will be given back."""
        if self.most is None:
            return UNLIMITED
        used, granted = self._of(account.used), self._of(account.granted)
        free = self.most - sum(self._of(other.granted) for other in accounts)
        more = max(free // ways, SEVERAL * self.least - (granted - used))
        if more <= free:
            return granted + more
        if last and granted + free >= used + self.least:
            return granted + free
        # Whoever takes over from a dead holder finds out what is left, and so needs none.
        return max(used, granted + min(0, free)) if account.state is State.LOST else None

    def _of(self, amounts: Amounts) -> int:
        return amounts.spent if self.field == "spent" else amounts.calls


@dataclass
class Leases:
    """The accounts of a run's shards, `accounts[i]` of shard i; its `size` and caps; who is there (`workers`); and
    whether no lease is granted any more."""

    accounts: list[Account]
    size: int
    money: Cap
    calls: Cap
    workers: frozenset[str] = frozenset()
    stopped: bool = False
    put_off: frozenset[int] = frozenset()
    """Shards that were left for later."""

    def copy(self) -> Leases:
        return replace(self, accounts=list(self.accounts))

    # --- what workers and the driver tell

    def take(self, worker: str) -> Lease | None:
        """A lease for `worker`: the one it has, or a new one; None where there is none now, or `worker` is not among
        those who are there."""
        if (held := self.holders().get(worker)) is not None:
            return Lease.of(self.accounts[held], len(self.workers))
        if self.stopped or worker not in self.workers or (leased := self._next(worker)) is None:
            return None
        self.accounts[leased.shard] = leased
        return Lease.of(leased, len(self.workers))

    def report(self, worker: str, shard: int, epoch: int, used: Amounts) -> Reply:
        """`worker` has looked, and the shard has so much. Ignored where the lease is not its own."""
        account = self.accounts[shard]
        if (account.worker, account.epoch, account.state) != (worker, epoch, State.HELD):
            return Reply.NOT_YOURS
        self.accounts[shard] = account.reported(used)
        self.put_off -= {shard}
        return Reply.STOP if self.stopped else Reply.GO_ON

    def give_back(self, worker: str, shard: int, epoch: int, used: Amounts, dry: bool) -> bool:
        """`worker` has ended its lease, and leaves the shard with so much; `dry`: its references give nothing more.
        False, and ignored, where the shard was leased again meanwhile. A worker that was believed dead is heard, too:
        nobody else has touched the shard, so it knows best."""
        account = self.accounts[shard]
        if (account.worker, account.epoch) != (worker, epoch):
            return False
        if account.state is not State.FREE:
            self.accounts[shard] = account.given_back(used, dry)
        return True

    def leave(self, worker: str, shard: int, epoch: int) -> bool:
        """`worker` leaves the shard as it is. It is tried again when nothing else can be had. False, and ignored, where
        the lease is not its own."""
        account = self.accounts[shard]
        if (account.worker, account.epoch, account.state) != (worker, epoch, State.HELD):
            return False
        self.accounts[shard], self.put_off = account.lost(), self.put_off | {shard}
        return True

    def have_workers(self, names: Collection[str]) -> None:
        """These are there, and no others: a holder that is not among them has died."""
        self.workers = frozenset(names)
        self.accounts = [account if account.worker in self.workers else account.lost() for account in self.accounts]

    def stop(self) -> None:
        """Grant no lease any more."""
        self.stopped = True

    def begin_job(self) -> None:
        """The driver has started anew: no worker is there, and every shard may be tried again."""
        self.workers, self.stopped = frozenset(), False
        self.accounts = [account.in_new_job() for account in self.accounts]

    # --- what there is to tell

    def holders(self) -> dict[str, int]:
        """Worker → the shard that it holds."""
        return {account.worker: account.shard for account in self.accounts if account.state is State.HELD}

    def finished(self) -> bool:
        """Whether no lease can be granted any more, whatever is still given back."""
        return self.stopped or (not self.holders() and self._next("") is None)

    @property
    def part(self) -> int:
        """How many of the run's samples are each shard's, by an even split, rounded down."""
        return self.size // len(self.accounts)

    # --- who gets what

    def _next(self, worker: str) -> Account | None:
        """The account of the shard that `worker` gets, leased to it. First those whose holder died: what they really
        used must be known before more can be granted, and little of it may be left to do."""
        room = self.size - sum(account.granted.kept for account in self.accounts)
        lost = [account for account in self.accounts if account.state is State.LOST]
        wanting = self._wanting() if room > 0 else []
        sizes = {shard.shard: max(shard.used.kept, shard.granted.kept + min(0, room)) for shard in lost}
        sizes |= {shard.shard: shard.used.kept + self._share(shard, wanting, room) for shard in wanting[:1]}
        ways = min(len(lost) + len(wanting[:room]), len({*self.workers, worker} - self.holders().keys()))
        last = not self.holders()
        for chosen in sorted([*lost, *wanting[:1]], key=lambda account: account.shard in self.put_off):
            spent, calls = (cap.bound(chosen, self.accounts, ways, last) for cap in (self.money, self.calls))
            if spent is not None and calls is not None:
                return chosen.leased(worker, Amounts(sizes[chosen.shard], spent, calls))
        return None

    def _wanting(self) -> list[Account]:
        """The free shards that may get more samples, the first one first: of those with less than their part, one that
        was begun, since its feedback is paid for. What dry shards leave goes to those that have less than their part,
        then to all, beginning with the smallest."""
        able = [a for a in self.accounts if a.state is State.FREE and not a.dry and not a.stuck]
        if below := [account for account in able if account.used.kept < self.part]:
            return sorted(below, key=lambda account: account.used.calls == 0)
        return sorted(able, key=lambda account: account.used.kept)

    def _share(self, account: Account, wanting: Sequence[Account], room: int) -> int:
        """How many more samples `account` gets of `room`: what is missing of its part, and of what is beyond the parts
        of those `wanting` as much as each of them."""
        missing = {other.shard: max(0, self.part - other.used.kept) for other in wanting}
        beyond = max(0, room - sum(missing.values()))
        return min(room, missing[account.shard] + -(-beyond // len(wanting)))
