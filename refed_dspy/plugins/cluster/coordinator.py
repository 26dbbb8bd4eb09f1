"""The coordinator of a run on a cluster: leases of its shards, and the claims of instructions.

It writes every answer into its file before it gives it, and the file is all its state: started again after a kill, it
continues, and whatever is asked twice is answered alike. Only what workers report for display is kept in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from refed_dspy.plugins.cluster.account import Account, Amounts, State
from refed_dspy.plugins.cluster.coordinator_file import CoordinatorFile
from refed_dspy.plugins.cluster.leases import Cap, Lease, Leases, Reply
from refed_dspy.plugins.cluster.registry import Registry

T = TypeVar("T")


@dataclass(frozen=True)
class LastWord:
    """What a worker reported last in its lease: about which shard, when (seconds since 1970), and what it told
    besides."""

    shard: int
    at: float
    progress: Mapping[str, Any]


@dataclass(frozen=True)
class Totals:
    """A run's numbers, by the last word about each shard. `spent`: picodollars. `done`: shards that nobody works on and
    that have their part of the size; `holders`: worker → its shard."""

    size: int
    kept: int
    spent: int
    calls: int
    shards: int
    done: int
    dry: int
    stuck: int
    holders: Mapping[str, int]
    last_words: Mapping[str, LastWord]


class Coordinator:
    """Who may work on what, by the file at `path`.

    Args:
        path: the file; made where there is none. The last coordinator's process must have ended.
        shards: how many the run is split into, once and for all.
        size: samples that the shards shall have together.
        max_cost, max_calls: picodollars and calls that they may use together. None: no cap.
        least: the worst case of the dearest call, in picodollars; needed for `max_cost`.
        job: a name for this start of the driver. Under another name than before, all workers are gone, `stop` is
            forgotten, and shards that gave nothing are tried again; under the same, the coordinator goes on.

    Size and caps may be others in each job; what is kept and spent stays. The first report and the return of a lease
    must tell what is in the shard's ledger, read once its lock is held: what a dead holder left is granted until then.

    Raises:
        RunDirError: the file cannot be written or is damaged, another process has it open, or the run is split into
            another number of shards.
        RunStopped, also from the methods: it cannot be written any more. Nothing has changed then.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        shards: int,
        size: int,
        job: str,
        max_cost: int | None = None,
        max_calls: int | None = None,
        least: int | None = None,
    ) -> None:
        self._file, self._job = CoordinatorFile(Path(path), shards), job
        self._registry = Registry(self._file)
        self._last_words: dict[str, LastWord] = {}
        money, calls = Cap("spent", max_cost, least or 1), Cap("calls", max_calls, 1)
        self._leases = Leases([Account(shard) for shard in range(shards)], size, money, calls)
        self._file.load(self._leases)
        if self._file.job() != job:
            new = self._leases.copy()
            new.begin_job()
            self._save(new)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def workers(self, names: Collection[str]) -> None:
        """These workers are there, and no others: the shard of one that is not among them is free for the next, with
        what it was granted. A name is one process's: a task that begins again takes another. To be told before they
        begin, since what is free is divided among them."""
        self._change(lambda leases: leases.have_workers(names))
        self._last_words = {name: word for name, word in self._last_words.items() if name in names}

    def take(self, worker: str) -> Lease | None:
        """A lease for `worker`, or the one that it holds. None: nothing now; ask again later, unless `finished`."""
        lease = self._change(lambda leases: leases.take(worker))
        if lease is not None:
            self._last_words.pop(worker, None)  # it was about another lease
        return lease

    def finished(self, worker: str | None = None) -> bool:
        """Whether no lease will be granted any more in this job; or none to this `worker`, which was given up."""
        return self._leases.finished() or (worker is not None and worker not in self._leases.workers)

    def report(
        self, worker: str, shard: int, epoch: int, used: Amounts, progress: Mapping[str, Any] | None = None
    ) -> Reply:
        """The shard has so much. `progress`: anything more, for `totals`."""
        reply = self._change(lambda leases: leases.report(worker, shard, epoch, used))
        if reply is not Reply.NOT_YOURS:
            self._last_words[worker] = LastWord(shard, time.time(), progress or {})
        return reply

    def give_back(self, worker: str, shard: int, epoch: int, used: Amounts, dry: bool) -> bool:
        """`worker` has come to the end of its lease, no call is under way, and the shard has so much; what it did not
        use goes to others. `dry`: its references give nothing more. Returns False, and nothing changes, where the shard
        was leased again meanwhile.

        A shard that gained and spent nothing in a lease gets no other in this job, so a worker that is interrupted says
        nothing rather than this.
        """
        return self._change(lambda leases: leases.give_back(worker, shard, epoch, used, dry))

    def put_off(self, worker: str, shard: int, epoch: int) -> bool:
        """`worker` leaves the shard for later and takes another: somebody else still has its files, a holder that was
        believed dead, or it was worked on in vain. Returns False where the lease is not its own any more."""
        return self._change(lambda leases: leases.leave(worker, shard, epoch))

    def claim(self, shard: int, digests: Sequence[bytes]) -> list[bytes]:
        """Those of `digests` (as `text_digest` makes them) that belong to another shard; all others belong to `shard`
        from now on."""
        return self._registry.claim(shard, digests)

    def stop(self) -> None:
        """Grant no lease any more in this job; whoever reports hears of it."""
        self._change(Leases.stop)

    def totals(self) -> Totals:
        """The run's numbers now."""
        leases, accounts = self._leases, self._leases.accounts
        kept, spent, calls = (sum(amount) for amount in zip(*(account.used for account in accounts), strict=True))
        done = sum(a.state is State.FREE and a.used.kept >= leases.part for a in accounts)
        dry, stuck = sum(account.dry for account in accounts), sum(account.stuck for account in accounts)
        shards, holders = len(accounts), leases.holders()
        return Totals(leases.size, kept, spent, calls, shards, done, dry, stuck, holders, dict(self._last_words))

    def _change(self, change: Callable[[Leases], T]) -> T:
        """Make `change`; what it returns is told only once what it changed is written."""
        after = self._leases.copy()
        result = change(after)
        if after != self._leases:
            self._save(after)
        return result

    def _save(self, leases: Leases) -> None:
        self._file.save(self._job, self._leases, leases)
        self._leases = leases
