"""The coordinator's file: the accounts of shards, and the registry's claims. One process has it open at a time."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from refed_dspy.errors import FolderInUse, RunDirError
from refed_dspy.ledger.connection import connected, transaction
from refed_dspy.ledger.format import is_made
from refed_dspy.plugins.cluster.account import Account, Amounts, State
from refed_dspy.plugins.cluster.leases import Leases

FORMAT = 1
"""The format of the file: its `user_version`. Others are refused."""
WAIT = 10.0
"""Seconds in which a coordinator whose process was just killed lets go of the file."""
_SCHEMA = """
-- One row: the driver's start whose workers have the leases, and whether none is granted any more.
CREATE TABLE job (name TEXT NOT NULL, stopped INTEGER NOT NULL);
CREATE TABLE workers (name TEXT PRIMARY KEY) WITHOUT ROWID;
-- account.py. `kept`: samples, `spent`: picodollars, each of the shard in all its starts.
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
