"""The coordinator of a run on a cluster: leases of its shards, and the claims of instructions.

It writes every answer into its file before it gives it, and the file is all its state: started again after a kill, it
continues, and whatever is asked twice is answered alike. Only what workers report for display is kept in memory.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from refed_dspy.errors import FolderInUse, RefedError, RunDirError, RunStopped, one_line
from refed_dspy.ledger.connection import connected, transaction
from refed_dspy.ledger.format import is_made
from refed_dspy.plugins.cluster.leases import Account, Amounts, Cap, Lease, Leases, Reply, State

FORMAT = 1
"""The format of the file: its `user_version`. Others are refused."""
WAIT = 10.0
"""Seconds in which a coordinator whose process was just killed lets go of the file."""
_SCHEMA = """
-- One row: the driver's start whose workers have the leases, and whether none is granted any more.
CREATE TABLE job (name TEXT NOT NULL, stopped INTEGER NOT NULL);
CREATE TABLE workers (name TEXT PRIMARY KEY) WITHOUT ROWID;
-- leases.py. `kept`: samples, `spent`: picodollars, each of the shard in all its starts.
CREATE TABLE accounts (
  shard INTEGER PRIMARY KEY, used_kept INTEGER NOT NULL, used_spent INTEGER NOT NULL, used_calls INTEGER NOT NULL,
  granted_kept INTEGER NOT NULL, granted_spent INTEGER NOT NULL, granted_calls INTEGER NOT NULL,
  bounds_kept INTEGER NOT NULL, bounds_spent INTEGER NOT NULL, bounds_calls INTEGER NOT NULL,
  begun_kept INTEGER NOT NULL, begun_spent INTEGER NOT NULL, begun_calls INTEGER NOT NULL,
  state TEXT NOT NULL, worker TEXT NOT NULL, epoch INTEGER NOT NULL, dry INTEGER NOT NULL, stuck INTEGER NOT NULL
);
-- One row for all that one claim brought: `digests` one after the other. With an index of digests a claim of ten would
-- change ten pages at random places, which takes five times as long.
CREATE TABLE claims (shard INTEGER NOT NULL, digests BLOB NOT NULL);
INSERT INTO job VALUES ('', 0);
"""
_ACCOUNT = f"INSERT OR REPLACE INTO accounts VALUES ({','.join('?' * 18)})"
WIDTH = 16
"""Bytes of a digest."""
T = TypeVar("T")


class CoordinatorFile:
    """The file at `path`, made where there is none, of a run that is split into so many `shards`.

    Raises:
        RunDirError: it cannot be written or is damaged, another process has it open, or it is about another number of
            shards.
    """

    def __init__(self, path: Path, shards: int) -> None:
        self.path = path
        with connected(path, "rwc") as db:
            _begin(path, db)
            if not is_made(path, db, FORMAT):
                db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}")
                db.executemany(_ACCOUNT, [_row(Account(shard)) for shard in range(shards)])
                db.execute(f"PRAGMA user_version={FORMAT}")
                db.execute("COMMIT")
            (made,) = db.execute("SELECT count(*) FROM accounts").fetchone()
            if made != shards:
                raise RunDirError(
                    f"{path.parent}: this run is split into {made} shards, not {shards}; that number stays, or choose "
                    "another folder"
                )
        self.db = db

    def close(self) -> None:
        self.db.close()

    def job(self) -> str:
        """The name of the driver's start that it was last open for; "" where it is new."""
        return str(self.db.execute("SELECT name FROM job").fetchone()[0])

    def load(self, leases: Leases) -> None:
        """Give `leases` the accounts, the workers and the stop that are written down."""
        leases.accounts = [_account(row) for row in self.db.execute("SELECT * FROM accounts ORDER BY shard")]
        leases.workers = frozenset(name for (name,) in self.db.execute("SELECT name FROM workers"))
        leases.stopped = bool(self.db.execute("SELECT stopped FROM job").fetchone()[0])

    def save(self, job: str, before: Leases, after: Leases) -> None:
        """Write down what differs. Raises RunStopped."""
        changed = [new for old, new in zip(before.accounts, after.accounts, strict=True) if old is not new]
        with self.writing() as db:
            db.executemany(_ACCOUNT, [_row(account) for account in changed])
            if after.workers != before.workers:
                db.execute("DELETE FROM workers")
                db.executemany("INSERT INTO workers VALUES (?)", [(name,) for name in after.workers])
            db.execute("UPDATE job SET name=?, stopped=?", (job, after.stopped))

    def writing(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction: at the end of the block it is on the disk, also if the machine is lost then."""
        return transaction(self.path, self.db)


def _begin(path: Path, db: sqlite3.Connection) -> None:
    """Take the file for this process. Raises RunDirError where another one has it, sqlite3.DatabaseError where it is
    damaged."""
    try:
        db.execute(f"PRAGMA busy_timeout={round(1000 * WAIT)}")
        db.execute("PRAGMA locking_mode=EXCLUSIVE")  # and so no shared memory, which network file systems lack
        db.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise FolderInUse(f"{path}: another process is at work on this run; wait for it or stop it") from None
        raise
    db.execute("PRAGMA synchronous=FULL")
    (result,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise sqlite3.DatabaseError(result)


def _row(account: Account) -> tuple[Any, ...]:
    amounts = (*account.used, *account.granted, *account.bounds, *account.begun)
    return (account.shard, *amounts, account.state, account.worker, account.epoch, account.dry, account.stuck)


def _account(row: tuple[Any, ...]) -> Account:
    shard, *amounts = row[:13]
    state, worker, epoch, dry, stuck = row[13:]
    used, granted, bounds, begun = (Amounts(*amounts[at : at + 3]) for at in range(0, 12, 3))
    return Account(shard, used, granted, bounds, begun, State(state), worker, epoch, bool(dry), bool(stuck))


class Registry:
    """Whose each digest is. In memory, about 110 MB a million, and in the coordinator's file. A digest's owner is a
    shard and not a worker, so that a claim made again has the same answer, whoever makes it."""

    def __init__(self, file: CoordinatorFile) -> None:
        self._file = file
        self._owners: dict[bytes, int] = {}
        for shard, digests in file.db.execute("SELECT shard, digests FROM claims"):
            for at in range(0, len(digests), WIDTH):
                self._owners[digests[at : at + WIDTH]] = shard

    def claim(self, shard: int, digests: Sequence[bytes]) -> list[bytes]:
        """Those of `digests` that belong to another shard; all others belong to `shard` from now on. Raises RunStopped
        where that cannot be written, ValueError for what is no digest."""
        asked = dict.fromkeys(digests)
        if wrong := [digest for digest in asked if len(digest) != WIDTH]:
            raise ValueError(f"{wrong[0]!r} is no digest of {WIDTH} bytes")
        new = [digest for digest in asked if digest not in self._owners]
        if new:
            with self._file.writing() as db:
                db.execute("INSERT INTO claims VALUES (?, ?)", (shard, b"".join(new)))
            self._owners.update(dict.fromkeys(new, shard))
        return [digest for digest in asked if self._owners[digest] != shard]


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


class CoordinatorLost(RunStopped):
    """The coordinator does not answer."""


class CoordinatorActor:
    """The coordinator, an `actor` of Ray, as workers and the driver ask it. Raises CoordinatorLost where it does not
    answer for `patience` seconds, and what it raised itself."""

    def __init__(self, actor: Any, patience: float) -> None:
        self.actor, self._patience = actor, patience

    async def ask(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            asked = getattr(self.actor, method).remote(*arguments)
            async with asyncio.timeout(self._patience):  # wait_for would lose a Ctrl-C that comes with the answer
                return await asyncio.wrap_future(asked.future())
        except RayTaskError as error:
            if isinstance(error.cause, RefedError):
                raise error.cause from None
            raise
        except (RayError, TimeoutError) as error:
            why = one_line(error, 200) or f"no answer in {self._patience:g} s"
            raise CoordinatorLost(f"the coordinator is lost: {why}") from None
