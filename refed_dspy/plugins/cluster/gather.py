"""Writes the run's own ledger anew from those of its shards: from then on it is read like any run's."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from refed_dspy.errors import RunDirError, RunStopped, one_line
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.format import check
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.cluster.gathered import GatheredLedger

_ASKED = "asked_teachers"


def gather(folder: Path, shards: Sequence[Path]) -> int:
    """Write the ledger of the run in `folder` anew from its `shards`; returns how many samples it then has.

    The ledger is there already: its settings, references and starts stay. `shards` are all of the run's shards in their
    order; one without a ledger has no rows yet. Nobody works on any of them, nor on the run, or has its ledger open for
    writing. Killed at any moment, this leaves the old ledger or the new one, whole.

    Raises:
        RunDirError: somebody works on a shard or the run; a ledger is damaged; a shard has other references than its
            part of the run's, or an instruction of another; a sample that the run had is in none.
        RunStopped: the new ledger could not be written.
    """
    fresh = folder / f"{FILE}.gathering"
    with Ledger.create(folder) as run:
        try:
            _empty_log(run)
            _remove(fresh)
            with closing(sqlite3.connect(fresh, isolation_level=None)) as db:
                kept = _write(db, run, shards)
            _put_in_place(run, fresh)
        except (sqlite3.Error, OSError) as error:
            raise RunStopped(
                f"{fresh}: could not be written ({one_line(error)}); the shards keep everything: make room, then "
                "run the same command"
            ) from error
        finally:
            with suppress(OSError):
                _remove(fresh)
    return kept


def _write(db: sqlite3.Connection, run: Ledger, shards: Sequence[Path]) -> int:
    """Fill the new ledger in `db`, and check it. Returns how many samples it has."""
    gathered = GatheredLedger(db, run.path, shards)
    gathered.begin()
    asked = run.meta(_ASKED) or []
    for number, shard in enumerate(shards):
        if (shard / FILE).is_file():
            with Ledger.create(shard) as ledger:
                gathered.add(number, ledger)
                asked += [teacher for teacher in ledger.meta(_ASKED) or () if teacher not in asked]
    kept = gathered.finish()
    if asked:
        Ledger(run.path, db, None).set_meta(**{_ASKED: asked})
    check(db)
    return kept


def _empty_log(run: Ledger) -> None:
    """Have what is in the log of the run's ledger in its file: the ledger that takes its place must find no log there.
    Raises RunDirError where a reader does not let go of an older state."""
    busy, in_log, moved = run.db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
    if busy or in_log != moved:
        raise RunDirError(f"{run.path}: is being read; end what reads it, then run the same command")


def _put_in_place(run: Ledger, fresh: Path) -> None:
    """Put the file `fresh` in the place of the run's ledger, whose log is empty, and which is closed with it."""
    with fresh.open("r+b") as file:
        os.fsync(file.fileno())
    run.db.close()
    for log in _logs(run.path):  # somebody may have it open, who goes on reading the old one
        log.unlink(missing_ok=True)
    fresh.replace(run.path)


def _remove(path: Path) -> None:
    for file in (path, *_logs(path)):
        file.unlink(missing_ok=True)


def _logs(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}-{kind}") for kind in ("wal", "shm")]
