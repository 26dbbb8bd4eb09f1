"""Leases in memory, and short words for what workers do with them."""

from __future__ import annotations

from refed_dspy.plugins.cluster.leases import Account, Amounts, Cap, Lease, Leases


def accounting(shards: int, size: int, max_cost: int | None, max_calls: int | None) -> Leases:
    """A call costs 10 picodollars at most."""
    return Leases(
        [Account(shard) for shard in range(shards)], size, Cap("spent", max_cost, 10), Cap("calls", max_calls, 1)
    )


def leases_of(
    shards: int, size: int, max_cost: int | None = None, max_calls: int | None = None, workers: str = "abc"
) -> Leases:
    """Leases of the workers a, b and c."""
    leases = accounting(shards, size, max_cost, max_calls)
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


def begun_again(before: Leases, size: int, max_cost: int | None = None) -> Leases:
    """Those of the next start, of the workers x, y and z."""
    leases = accounting(len(before.accounts), size, max_cost, None)
    leases.accounts = list(before.accounts)
    leases.begin_job()
    leases.have_workers("xyz")
    return leases
