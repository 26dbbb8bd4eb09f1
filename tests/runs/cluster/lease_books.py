"""Leases in memory, and short words for what workers do with them."""

from __future__ import annotations

from collections.abc import Collection

from refed_dspy.plugins.cluster.leases import Account, Amounts, Cap, Lease, Leases, Reply
from tests.runs.cluster.simulated_cluster import Books, Settings


def accounting(shards: int, settings: Settings) -> Leases:
    money, calls = Cap("spent", settings.max_cost, settings.least), Cap("calls", settings.max_calls, 1)
    return Leases([Account(shard) for shard in range(shards)], settings.size, money, calls)


class InMemory(Books):
    def __init__(self, shards: int, settings: Settings) -> None:
        self.made = accounting(shards, settings)

    @property
    def leases(self) -> Leases:
        return self.made

    def rebuild(self) -> None:
        self.made = self.made.copy()

    def begin(self, settings: Settings) -> None:
        accounts = self.made.accounts
        self.made = accounting(len(accounts), settings)
        self.made.accounts = list(accounts)
        self.made.begin_job()

    def have_workers(self, names: Collection[str]) -> None:
        self.made.have_workers(names)

    def take(self, worker: str) -> Lease | None:
        return self.made.take(worker)

    def report(self, worker: str, lease: Lease, used: Amounts) -> Reply:
        return self.made.report(worker, lease.shard, lease.epoch, used)

    def give_back(self, worker: str, lease: Lease, used: Amounts, dry: bool) -> bool:
        return self.made.give_back(worker, lease.shard, lease.epoch, used, dry)


def leases_of(
    shards: int, size: int, max_cost: int | None = None, max_calls: int | None = None, workers: str = "abc"
) -> Leases:
    """Workers a, b, c; a call costs 10 picodollars at most."""
    leases = accounting(shards, Settings(size, max_cost, max_calls, least=10))
    leases.have_workers(workers)
    return leases


def taken(leases: Leases, worker: str) -> Lease:
    lease = leases.take(worker)
    assert lease is not None
    return lease


def ended(
    leases: Leases, worker: str, lease: Lease, kept: int, spent: int = 0, calls: int = 0, dry: bool = False
) -> None:
    assert leases.give_back(worker, lease.shard, lease.epoch, Amounts(kept, spent, calls), dry)


def begun_again(leases: Leases, size: int, max_cost: int | None = None) -> Leases:
    books = InMemory(1, Settings(1, None, None, 10))
    books.made = leases
    books.begin(Settings(size, max_cost, None, least=10))
    books.have_workers("xyz")
    return books.leases
