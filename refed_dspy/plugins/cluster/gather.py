"""Writes the run's own ledger anew from those of its shards: from then on it is read like any run's."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from refed_dspy.errors import RunDirError, RunStopped, one_line
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.format import FORMAT, check, schema
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import UNGATHERED

_CACHE = 64
"""MiB of pages in memory: the index of the answers' keys is filled in no order."""

# What waits for its number, besides the ledger's tables. Calls are many: they wait in the file itself, where the
# indices take their place afterwards.
_WAITING = """
CREATE TABLE unnumbered (
  id INTEGER PRIMARY KEY, key, stage, item, model, endpoint, outcome, seconds, prompt_tokens, cached_tokens,
  completion_tokens, reserved, cost, created, reasoning_tokens
);
CREATE TEMP TABLE waiting (call INTEGER, batch INTEGER, answer TEXT);
CREATE TEMP TABLE made (place INTEGER PRIMARY KEY, instruction INTEGER, created REAL);
CREATE TEMP TABLE numbered (instruction INTEGER PRIMARY KEY, seq INTEGER);
CREATE TEMP TABLE ordered (number INTEGER PRIMARY KEY, call INTEGER);
"""
_OF_THE_RUN = f"""
INSERT INTO meta SELECT * FROM before.meta WHERE name <> '{UNGATHERED}';
INSERT INTO refs SELECT * FROM before.refs;
INSERT INTO starts SELECT begun, last FROM before.starts ORDER BY rowid;
"""
_OTHER_REFERENCE = """
SELECT 1 FROM shard.refs own LEFT JOIN refs whole ON whole.position = :shard + :shards * own.position
WHERE whole.id IS NOT own.id LIMIT 1
"""
_TWIN = """
SELECT kept.reference % :shards, own.text FROM shard.instructions own JOIN instructions kept USING (digest) LIMIT 1
"""
# An item is an instruction's number; or a reference's id of twelve hex digits, with or without a feature behind it.
_ITEM = """CASE WHEN item GLOB '[1-9]*' AND item NOT GLOB '*[^0-9]*' AND length(item) < 12
  THEN CAST(item + :instructions AS TEXT) ELSE item END"""
# In this order: what a model thought belongs to the answer that is kept, and answers are added last.
_ADDED = (
    "INSERT INTO instructions SELECT id + :instructions, :shard + :shards * reference, feature, round, digest, text,"
    " used, sample, sum, sample_sum FROM shard.instructions",
    "INSERT INTO decisions SELECT instruction + :instructions, filter, position, kept, score, reason, detail, created"
    " FROM shard.decisions",
    "INSERT INTO proposals SELECT :shard + :shards * reference, feature, round, kept, duplicates, surplus"
    " FROM shard.proposals",
    "INSERT INTO made (instruction, created) SELECT instruction + :instructions, created FROM shard.samples"
    " ORDER BY seq",
    f"INSERT INTO unnumbered SELECT id + :calls, key, stage, {_ITEM}, model, endpoint, outcome, seconds, prompt_tokens,"
    " cached_tokens, completion_tokens, reserved, cost, created, reasoning_tokens FROM shard.calls",
    "INSERT INTO batches SELECT id + :batches, nonce, endpoint, model, name, state, requests, created, ended"
    " FROM shard.batches",
    "INSERT INTO waiting SELECT call + :calls, batch + :batches, answer FROM shard.batched",
    f"INSERT OR IGNORE INTO failures SELECT key, stage, {_ITEM}, kind, reason, final, created FROM shard.failures",
    f"INSERT OR IGNORE INTO shared SELECT {_ITEM}, stage, key FROM shard.shared",
    "INSERT OR IGNORE INTO reused SELECT key, model FROM shard.reused",
    "INSERT INTO reasoning SELECT key, text, sum FROM shard.reasoning WHERE key NOT IN (SELECT key FROM answers)",
    f"INSERT OR IGNORE INTO answers SELECT key, stage, {_ITEM}, repetition, output, raw, endpoint, created, sum"
    " FROM shard.answers",
)
_SAME_ANSWERS = f"""
INSERT OR IGNORE INTO shared SELECT own.item, own.stage, key
FROM (SELECT key, stage, {_ITEM} AS item FROM shard.answers) own JOIN answers kept USING (key)
WHERE (kept.item, kept.stage) <> (own.item, own.stage)
"""
# A start of the run lasts as long as the starts of its shards that began in it.
_LAST = """
UPDATE starts SET last = max(last, (
  SELECT coalesce(max(own.last), 0) FROM shard.starts own WHERE own.begun >= starts.begun
  AND NOT EXISTS (SELECT 1 FROM starts later WHERE later.begun > starts.begun AND later.begun <= own.begun)
))
"""
# CROSS JOIN: SQLite keeps the order of the tables, of which it reads the indices alone.
_NUMBERED_BEFORE = """
INSERT INTO numbered SELECT now.id, seq FROM before.instructions was
CROSS JOIN before.samples ON instruction = was.id JOIN instructions now ON now.digest = was.digest
"""
_LOST = "SELECT (SELECT count(*) FROM before.samples) - (SELECT count(*) FROM numbered JOIN made USING (instruction))"
_SAMPLES = """
INSERT INTO samples SELECT row_number() OVER (ORDER BY seq IS NULL, seq, created, place), instruction, created
FROM made LEFT JOIN numbered USING (instruction)
"""
_CALLS = """
INSERT INTO ordered (call) SELECT id FROM unnumbered ORDER BY created, id;
INSERT INTO calls SELECT number, key, stage, item, model, endpoint, outcome, seconds, prompt_tokens, cached_tokens,
  completion_tokens, reserved, cost, created, reasoning_tokens
  FROM ordered CROSS JOIN unnumbered ON id = call ORDER BY number;
INSERT INTO batched SELECT number, batch, answer FROM waiting JOIN ordered USING (call);
DROP TABLE unnumbered;
"""
_LATER = "SELECT type, name FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"
"""What is made once the tables are full."""
_ASKED = "asked_teachers"


class GatheredLedger:
    """The new ledger of `run` in `db`, which is empty, filled from its `shards`. Raises sqlite3.Error."""

    def __init__(self, db: sqlite3.Connection, run: Path, shards: Sequence[Path]) -> None:
        self._db, self._run, self._shards = db, run, shards

    def begin(self) -> None:
        """Take over settings, references and starts from the run's ledger so far."""
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{1024 * _CACHE}"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(schema())
        for kind, name in self._db.execute(_LATER).fetchall():
            self._db.execute(f"DROP {kind} {name}")
        self._db.executescript(_WAITING)
        self._db.execute("ATTACH ? AS before", (str(self._run),))
        self._db.executescript(_OF_THE_RUN)

    def add(self, number: int, shard: Ledger) -> None:
        """Add what the shard of this number has. Raises RunDirError where its references are others than the run's, or
        where it has an instruction of another shard."""
        self._db.execute("ATTACH ? AS shard", (str(shard.path),))
        last = {"calls": "unnumbered", "instructions": "instructions", "batches": "batches"}
        values = {name: self._number(f"SELECT coalesce(max(id), 0) FROM {table}") for name, table in last.items()}
        values |= {"shard": number, "shards": len(self._shards)}
        self._check(values)
        for statement in _ADDED:
            added = self._db.execute(statement, values).rowcount
        if added < self._number("SELECT count(*) FROM shard.answers"):
            self._db.execute(_SAME_ANSWERS, values)
        self._db.execute(_LAST)
        self._db.execute("DETACH shard")

    def _check(self, values: dict[str, int]) -> None:
        folder = self._shards[values["shard"]]
        if self._db.execute(_OTHER_REFERENCE, values).fetchone() is not None:
            raise RunDirError(f"{folder}: has other references than this shard of the run; restore it from a backup")
        if (twin := self._db.execute(_TWIN, values).fetchone()) is not None:
            raise RunDirError(
                f"{folder} and {self._shards[twin[0]]}: both have the instruction {one_line(twin[1], 80)!r}, which no "
                "run has twice; restore the one that was changed from a backup"
            )

    def finish(self) -> int:
        """Number samples and calls, sum up what was used, and index all. Returns how many samples there are.

        A sample that had a number keeps it, though clocks differ. Raises RunDirError where one is in no shard.
        """
        self._db.execute(_NUMBERED_BEFORE)
        if lost := self._number(_LOST):
            raise RunDirError(f"{self._run}: {lost} of its samples are in no shard; restore the shards from a backup")
        self._db.execute("DETACH before")
        self._db.execute(_SAMPLES)
        self._db.executescript(_CALLS)
        names = [name for _, name, *_ in self._db.execute("PRAGMA table_info(usage)")][4:]
        sums = ", ".join(f"sum({name})" for name in names)
        self._db.execute(
            f"INSERT INTO usage SELECT stage, model, endpoint, min(id), {sums} FROM counted GROUP BY 1, 2, 3"
        )
        self._db.executescript(f"{schema()} PRAGMA user_version={FORMAT}; PRAGMA journal_mode=WAL")
        return self._number("SELECT coalesce(max(seq), 0) FROM samples")

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])


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
