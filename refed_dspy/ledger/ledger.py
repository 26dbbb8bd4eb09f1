"""The ledger: one SQLite file a run, one transaction a unit of work, and nothing else is state.

A killed process loses nothing that was committed. The journal is WAL at `synchronous=NORMAL`: a power cut may cost
the last commits, never the file. One process writes (a file lock); any number may read meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from refed_dspy.errors import RunDirError, RunStopped, one_line
from refed_dspy.ledger.statements import Decided, Statement, decided, text_digest, unusable
from refed_dspy.records import Failure, Reference

FORMAT = 4
FILE = "ledger.sqlite"


@dataclass(frozen=True)
class Added:
    """What became of proposed instructions: the new ones as (id, text), how many were there already, and the new ones
    that a filter dropped."""

    new: tuple[tuple[int, str], ...]
    duplicates: int
    dropped: int = 0


class Ledger:
    """Reads and writes of one run's file. Open it with `create` (the writer) or `read`."""

    def __init__(self, path: Path, db: sqlite3.Connection, lock: FileLock | None) -> None:
        self.path, self.db, self._lock = path, db, lock

    @classmethod
    def create(cls, run_dir: Path) -> Self:
        """Open `run_dir`'s ledger for writing, making both where they do not exist.

        Raises:
            RunDirError: the folder cannot be written, another process writes it, or the file is damaged.
        """
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = FileLock(run_dir / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise RunDirError(f"{run_dir}: another process is working on this run; wait for it, or stop it") from None
        except OSError as error:
            raise RunDirError(f"{run_dir}: cannot be written: {one_line(error.strerror or error)}") from None
        try:
            db = _open(run_dir / FILE, "rwc")
            with _explained(run_dir / FILE):
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                _check(run_dir / FILE, db)
                db.executescript(files("refed_dspy.ledger").joinpath("schema.sql").read_text(encoding="utf-8"))
                db.execute(f"PRAGMA user_version={FORMAT}")
        except BaseException:
            lock.release()
            raise
        return cls(run_dir / FILE, db, lock)

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """Open `run_dir`'s ledger for reading, also while a run is writing it.

        Raises:
            RunDirError: there is none, or it is damaged.
        """
        path = run_dir / FILE
        if not path.is_file():
            raise RunDirError(f"{run_dir}: no run here (no {FILE}); start one with: refed synth --run-dir {run_dir}")
        db = _open(path, "rw")
        with _explained(path):
            db.execute("PRAGMA query_only=ON")
            _check(path, db)
            begun = db.execute("SELECT 1 FROM sqlite_master WHERE name='samples'").fetchone()
        if begun is None:
            db.close()
            raise RunDirError(f"{run_dir}: the run is only just being made; look again in a moment")
        return cls(path, db, None)

    def close(self) -> None:
        self.db.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One unit, whole or not at all."""
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield self.db
            self.db.execute("COMMIT")
        except BaseException as error:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            if not isinstance(error, sqlite3.Error):
                raise
            raise RunStopped(
                f"{self.path}: the ledger could not be written ({one_line(error)}); make room, then resume"
            ) from error

    # --- the run itself

    def meta(self, name: str) -> Any:
        """The value stored under `name`, or None."""
        row = self.db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_meta(self, **values: Any) -> None:
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in values.items()])

    def holds(self) -> str:
        """What the folder was made for: "run", "compile", "agreement", "comparison", "recycling", "filtering",
        "statistics"; empty for one that is new."""
        if (work := self.meta("work")) is not None:
            return str(work)
        for kind in ("compile", "agreement"):
            if self.meta(kind) is not None:
                return kind
        return "run" if self.meta("identity") is not None else ""

    def begin(self, references: Sequence[Reference], **meta: Any) -> None:
        """Store what the run is made of, in one transaction: a run either exists or does not.

        Whatever the folder held of a run without an answer is forgotten, but for what its calls cost.
        """
        with self._transaction() as db:
            for table in ("meta", "refs", "failures"):
                db.execute(f"DELETE FROM {table}")
            db.executemany(
                "INSERT INTO refs VALUES (?, ?, ?)",
                ((i, ref.id, ref.model_dump_json()) for i, ref in enumerate(references)),
            )
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(k, json.dumps(v)) for k, v in meta.items()])

    def has_answers(self) -> bool:
        """Whether anything was paid for that a later start could use."""
        return self.db.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None

    def last_call(self) -> int:
        """The highest number a call has, or 0."""
        return int(self.db.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()[0])

    def settled_keys(self) -> set[str]:
        """Keys that were answered or failed for good: all others need no look."""
        rows = self.db.execute("SELECT key FROM answers UNION SELECT key FROM failures WHERE final")
        return {key for (key,) in rows}

    def references(self) -> list[Reference]:
        rows = self.db.execute("SELECT record FROM refs ORDER BY position")
        return [Reference.model_validate_json(record) for (record,) in rows]

    # --- answers and failures of single calls

    def answer(self, digest: str) -> str | None:
        """The paid output under this key, as JSON, or None."""
        row = self.db.execute("SELECT output FROM answers WHERE key=?", (digest,)).fetchone()
        return None if row is None else str(row[0])

    def endpoint(self, digest: str) -> str:
        """Which endpoint gave the answer under this key."""
        return str(self.db.execute("SELECT endpoint FROM answers WHERE key=?", (digest,)).fetchone()[0])

    def failure(self, digest: str) -> tuple[str, str] | None:
        """(kind, reason) of a final failure under this key, or None: it would only be paid for again."""
        row = self.db.execute("SELECT kind, reason FROM failures WHERE key=? AND final", (digest,)).fetchone()
        return None if row is None else (str(row[0]), str(row[1]))

    def commit(self, statements: Iterable[Statement]) -> None:
        """Write whole units (engine/rows.py), all of them or none. Raises RunStopped where it cannot be written."""
        with self._transaction() as db:
            for sql, values in statements:
                db.execute(sql, values)

    # --- instructions and samples

    def commit_proposal(
        self,
        reference: int,
        feature: str,
        round_: int,
        texts: Sequence[str],
        surplus: int,
        barred: frozenset[bytes],
        screen: Callable[[str], Sequence[Decided]] = lambda _: (),
    ) -> Added:
        """Store one synthesis call's instructions; those already there, or `barred`, are counted as duplicates.

        What `screen` says of each new one is stored with it; one that it drops is not answered.
        """
        new: list[tuple[int, str]] = []
        dropped = 0
        with self._transaction() as db:
            for text in texts:
                if (digest := text_digest(text)) in barred:
                    continue
                row = db.execute(
                    "INSERT INTO instructions (reference, feature, round, digest, text) VALUES (?,?,?,?,?)"
                    " ON CONFLICT (digest) DO NOTHING RETURNING id",
                    (reference, feature, round_, digest, text),
                ).fetchone()
                if row is None:
                    continue
                decisions = screen(text)
                for sql, values in decided(row[0], decisions):
                    db.execute(sql, values)
                if all(decision.kept for decision in decisions):
                    new.append((int(row[0]), text))
                else:
                    db.execute(*unusable(row[0], round_)[0])
                    dropped += 1
            duplicates = len(texts) - len(new) - dropped
            db.execute(
                "INSERT OR REPLACE INTO proposals VALUES (?,?,?,?,?,?)",
                (reference, feature, round_, len(new), duplicates, surplus),
            )
        return Added(tuple(new), duplicates, dropped)

    # --- what a plan is restored from

    def kept(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM samples").fetchone()[0])

    def proposals(self) -> list[tuple[int, str, int, int]]:
        """(reference, feature, round, new instructions) of every settled synthesis call, oldest round first."""
        return self.db.execute("SELECT reference, feature, round, kept FROM proposals ORDER BY round").fetchall()

    def used(self) -> list[tuple[int, int, int]]:
        """(reference, round, how many samples it gave in that round)."""
        return self.db.execute(
            "SELECT reference, used, count(*) FROM samples s JOIN instructions i ON i.id = s.instruction GROUP BY 1, 2"
        ).fetchall()

    def open_instructions(self) -> list[tuple[int, int, str]]:
        """(reference, id, text) not answered yet; those whose first response is paid for come first."""
        return self.db.execute(
            "SELECT reference, id, text FROM instructions i WHERE used IS NULL ORDER BY NOT EXISTS"
            " (SELECT 1 FROM answers WHERE item=CAST(i.id AS TEXT) AND stage='response_generation'), id"
        ).fetchall()

    def texts_before(self, reference: int, round_: int, newest: int) -> list[str]:
        """The newest instructions that one reference gave before this round, oldest first."""
        rows = self.db.execute(
            "SELECT text FROM instructions WHERE reference=? AND round<? ORDER BY id DESC LIMIT ?",
            (reference, round_, newest),
        ).fetchall()
        return [text for (text,) in reversed(rows)]

    def failures(self) -> list[Failure]:
        rows = self.db.execute("SELECT stage, item, kind, reason FROM failures ORDER BY created")
        return [Failure(stage=s, item=i, kind=k, reason=r) for s, i, k, r in rows]


def _open(path: Path, mode: str) -> sqlite3.Connection:
    with _explained(path):
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10, check_same_thread=False)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise RunDirError(
            f"{path}: not a readable ledger ({one_line(error)}); restore it from a copy, or use a new --run-dir"
        ) from None


def _check(path: Path, db: sqlite3.Connection) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in {0, FORMAT}:  # 0: the file is only being made
        raise RunDirError(f"{path}: written by another version (format {version}, this is {FORMAT}); use that version")
    verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
