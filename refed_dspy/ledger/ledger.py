"""The ledger: one SQLite file per run, one transaction per unit of work. There is no other state.

A killed process loses nothing that was committed. The database is in WAL mode at `synchronous=NORMAL`: a power cut may
lose the last commits, never the file. One process writes (a file lock); any number may read meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from refed_dspy.errors import LedgerLost, RunDirError, one_line
from refed_dspy.ledger.connection import (
    FILE,
    Fence,
    OpenFiles,
    connected,
    damaged,
    is_at_work,
    is_damage,
    reading,
    take_lock,
    transaction,
)
from refed_dspy.ledger.format import (
    FAILED,
    FORMAT,
    check_if_new,
    check_tables,
    checksum,
    close,
    is_made,
    presume_sums,
    set_up,
    version_of,
)
from refed_dspy.ledger.statements import Answer, DecisionRow, Statement, decided, noted, text_digest, unusable
from refed_dspy.records import Failure, Reference

T = TypeVar("T")

_NEW_INSTRUCTION = """
INSERT INTO instructions (reference, feature, round, digest, text, sum) VALUES (?,?,?,?,?,?)
ON CONFLICT (digest) DO NOTHING RETURNING id
"""
_ANSWER = """
SELECT intact(a.sum, output, raw, endpoint), raw, coalesce(intact(r.sum, text), ''), item, stage
FROM answers a LEFT JOIN reasoning r USING (key) WHERE key=?
"""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """What reads a `kind`; made once, since making it takes longer than most reading."""
    return TypeAdapter(kind)


@dataclass(frozen=True)
class Added:
    """The outcome of storing proposed instructions: the new ones as (id, text), and how many more a filter dropped."""

    new: tuple[tuple[int, str], ...]
    dropped: int


class Ledger:
    """Reads and writes one run's file. Open it with `create` (the writer) or `read`."""

    def __init__(self, path: Path, db: sqlite3.Connection, lock: FileLock | None, fence: Fence | None = None) -> None:
        self.path, self.db, self._lock, self._fence = path, db, lock, fence
        self._on_disk = OpenFiles(path, db)
        self._started: tuple[int, float, float] | None = None

    @classmethod
    def create(cls, run_dir: Path, epoch: int | None = None) -> Self:
        """Open `run_dir`'s ledger for writing. Creates the folder and the file where they do not exist. `epoch`: the
        number of the lease of a shard that is to be written.

        Raises:
            RunDirError: the folder cannot be written, another process writes it, or the file is damaged.
            RunStopped: a later lease of the shard writes it.
        """
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = take_lock(run_dir)
        except OSError as error:
            raise RunDirError(f"{run_dir}: cannot be written: {one_line(error.strerror or error)}") from None
        try:
            with connected(run_dir / FILE, "rwc") as db:
                db.execute("PRAGMA synchronous=NORMAL")
                if (fence := Fence.of(run_dir, epoch)) is not None:
                    fence.set_up(db)
                db.execute("PRAGMA auto_vacuum=NONE")  # of a new file: it never becomes shorter by itself
                db.execute("PRAGMA journal_mode=WAL")
                set_up(run_dir / FILE, db)
                check_if_new(run_dir / FILE, db)
        except BaseException:
            lock.release()
            raise
        return cls(run_dir / FILE, db, lock, fence)

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """Open `run_dir`'s ledger for reading, also while another process writes it.

        Raises:
            RunDirError: there is none, or it is damaged.
        """
        path = run_dir / FILE
        if not path.is_file():
            raise RunDirError(f"{run_dir}: no run here (no {FILE}); name the folder of a run")
        with connected(path, "rw") as db:
            made = is_made(path, db)
            if made and version_of(db) != FORMAT:
                presume_sums(db)
            db.execute("PRAGMA query_only=ON")
            if not made:
                raise RunDirError(f"{run_dir}: the run is just being created; try again in a moment")
            if is_at_work(run_dir):  # who writes it has checked it
                check_tables(db)
            else:
                check_if_new(path, db)
        return cls(path, db, None)

    def close(self) -> None:
        """Close the file, and release the lock if there is one."""
        close(self.path, self.db, wrote=self._lock is not None)
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if is_damage(error):
            raise damaged(self.path, error) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction: committed whole at the end of the block, or not at all. Raises RunStopped where it fails,
        where the ledger is another lease's by now, and, though it is written, where the file is no longer there."""
        lost = self._on_disk.lost()
        with transaction(self.path, self.db) as db:
            yield db
            if self._started is not None:
                number, begun, since = self._started  # neither sleep nor a jump of the clock is work
                last = begun + time.monotonic() - since
                db.execute("UPDATE starts SET last = ? WHERE rowid = ? AND last > 0", (last, number))
            if self._fence is not None:
                self._fence.check()
        if lost:
            raise LedgerLost(lost)

    def start(self, statements: Iterable[Statement]) -> None:
        """Begin a start, with `statements` in the same transaction; from now on its time is counted."""
        with self._transaction() as db:
            for sql, values in statements:
                db.execute(sql, values)
            number = db.execute("INSERT INTO starts (begun) VALUES (?)", (begun := time.time(),)).lastrowid
        self._started = int(number or 0), begun, time.monotonic()

    def rest(self) -> None:
        """Count no more time for this start: what is written from now on is not made by calls."""
        self._started = None

    # --- the run itself

    def meta(self, name: str) -> Any:
        """The value stored under `name`, or None."""
        row = self.db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_meta(self, **values: Any) -> None:
        """Store each of `values` under its name, in one transaction."""
        self.commit([noted(name, value) for name, value in values.items()])

    def holds(self) -> str:
        """The kind of work in the folder: "run", "compile", "agreement", "comparison", "recycling", "filtering",
        "statistics", "answers", "evaluation"; "" for a new folder."""
        return str(self.meta("work") or "")

    def begin(self, references: Sequence[Reference], **meta: Any) -> None:
        """Store the work's references and settings in one transaction: it either exists or does not.

        What earlier work without any answer left in the folder is deleted, except what its calls cost.
        """
        with self._transaction() as db:
            for table in ("meta", "refs", "failures", "candidates", "evaluations"):
                db.execute(f"DELETE FROM {table}")
            db.executemany(
                "INSERT INTO refs VALUES (?, ?, ?, ?)",
                # Without empty fields: each that is set takes memory when it is read back, and there may be 100,000.
                (
                    (i, ref.id, text := ref.model_dump_json(exclude_defaults=True), checksum(text, ref.id))
                    for i, ref in enumerate(references)
                ),
            )
            for name, value in meta.items():
                db.execute(*noted(name, value))

    def has_answers(self) -> bool:
        """Whether there is a paid answer that a later start could use."""
        return self.db.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None

    def last_call(self) -> int:
        """The highest number a call has, or 0."""
        return int(self.db.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()[0])

    def answered_models(self) -> set[tuple[str, str]]:
        """(model, endpoint) of the calls that were answered."""
        return set(self.db.execute("SELECT DISTINCT model, endpoint FROM usage WHERE answered"))

    def passing_failures(self) -> set[str]:
        """The keys of failures that may succeed when they are asked again."""
        return {key for (key,) in self.db.execute("SELECT key FROM failures WHERE NOT final")}

    def paid_for(self, digest: str) -> int:
        """What the answer under this key cost, in picodollars, without failed attempts before it."""
        query = "SELECT total(cost) FROM calls WHERE key=? AND outcome='ok'"
        return int(self.db.execute(query, (digest,)).fetchone()[0])

    def references(self, ids: Collection[str] | None = None) -> list[Reference]:
        """The run's references, in their order; or only those of these `ids`."""
        with reading(self.path):
            rows = self.db.execute("SELECT id, intact(sum, record, id) FROM refs ORDER BY position").fetchall()
        return [self.parsed(Reference, record) for id_, record in rows if ids is None or id_ in ids]

    def check_sum(self, stored: int | None, *texts: str | None) -> None:
        """Raises RunDirError where `texts` are not those of which `stored` is the checksum."""
        if stored is not None and stored != checksum(*texts):
            raise damaged(self.path, FAILED)

    def parsed(self, kind: type[T], text: str) -> T:
        """The JSON `text`, which is one of this ledger's, as a `kind`. Raises RunDirError where it is damaged."""
        try:
            return cast(T, _adapter(cast(Any, kind)).validate_json(text))
        except ValidationError:
            raise damaged(self.path, f"a value is no {kind.__name__}") from None

    # --- answers and failures of single calls

    def answer(self, digest: str) -> Answer | None:
        """The paid answer under this key, or None."""
        with reading(self.path):
            row = self.db.execute(_ANSWER, (digest,)).fetchone()
        return None if row is None else Answer(row[0], row[1], row[2], asked_for=(row[3], row[4]))

    def reasoning(self, digest: str | None) -> str:
        """What the model thought before the answer under this key; empty where that is not known."""
        row = self.db.execute("SELECT intact(sum, text) FROM reasoning WHERE key=?", (digest,)).fetchone()
        return "" if row is None else str(row[0])

    def endpoint(self, digest: str) -> str:
        """The endpoint that gave the answer under this key."""
        return str(self.db.execute("SELECT endpoint FROM answers WHERE key=?", (digest,)).fetchone()[0])

    def failure(self, digest: str) -> tuple[str, str, bool] | None:
        """(kind, reason, whether it is final) of the failure under this key, or None. A final one would only be paid
        for again."""
        row = self.db.execute("SELECT kind, reason, final FROM failures WHERE key=?", (digest,)).fetchone()
        return None if row is None else (str(row[0]), str(row[1]), bool(row[2]))

    def commit(self, statements: Iterable[Statement]) -> None:
        """Write the statements of whole units, all of them or none. Raises RunStopped where they cannot be written."""
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
        screen: Callable[[str], Sequence[DecisionRow]] = lambda _: (),
    ) -> Added:
        """Store one synthesis call's instructions. Those that exist already, or are `barred`, count as duplicates.

        The decisions of `screen` about each new one are stored with it. One that it drops is not answered.
        """
        new: list[tuple[int, str]] = []
        dropped = 0
        with self._transaction() as db:
            for text in texts:
                if (digest := text_digest(text)) in barred:
                    continue
                row = db.execute(
                    _NEW_INSTRUCTION, (reference, feature, round_, digest, text, checksum(text, feature))
                ).fetchone()
                if row is None:
                    continue
                number, decisions = int(row[0]), screen(text)
                statements = decided(number, decisions)
                if all(decision.kept for decision in decisions):
                    new.append((number, text))
                else:
                    statements += unusable(number, round_)
                    dropped += 1
                for sql, values in statements:
                    db.execute(sql, values)
            duplicates = len(texts) - len(new) - dropped
            db.execute(
                "INSERT INTO proposals VALUES (?,?,?,?,?,?)",
                (reference, feature, round_, len(new), duplicates, surplus),
            )
        return Added(tuple(new), dropped)

    def is_instruction(self, digest: bytes) -> bool:
        """Whether an instruction of this digest is there."""
        return self.db.execute("SELECT 1 FROM instructions WHERE digest=?", (digest,)).fetchone() is not None

    # --- the state that a plan is restored from

    def kept(self) -> int:
        """How many samples were kept."""
        return int(self.db.execute("SELECT coalesce(max(seq), 0) FROM samples").fetchone()[0])  # none is ever deleted

    def proposals(self) -> list[tuple[int, str, int, int]]:
        """(reference, feature, round, new instructions) of every settled synthesis call, oldest round first."""
        return self.db.execute("SELECT reference, feature, round, kept FROM proposals ORDER BY round").fetchall()

    def used(self) -> list[tuple[int, int, int]]:
        """(reference, round, samples that it gave in that round) of every reference and round."""
        return self.db.execute(
            "SELECT reference, used, count(*) FROM samples s JOIN instructions i ON i.id = s.instruction GROUP BY 1, 2"
        ).fetchall()

    def open_instructions(self) -> list[tuple[int, int, str]]:
        """(reference, id, text) of all instructions not used yet; those whose first response is paid for come first."""
        return self.db.execute(
            "SELECT reference, id, intact(sum, text, feature) FROM instructions i WHERE used IS NULL"
            " ORDER BY NOT EXISTS (SELECT 1 FROM answers WHERE item=CAST(i.id AS TEXT)"
            " AND stage='response_generation'), id"
        ).fetchall()

    def texts_before(self, reference: int, round_: int, newest: int) -> list[str]:
        """The `newest` last instructions that one reference gave before this round, oldest first."""
        rows = self.db.execute(
            "SELECT intact(sum, text, feature) FROM instructions WHERE reference=? AND round<?"
            " ORDER BY id DESC LIMIT ?",
            (reference, round_, newest),
        ).fetchall()
        return [text for (text,) in reversed(rows)]

    def failures(self) -> list[Failure]:
        """Every failed unit, oldest first."""
        rows = self.db.execute("SELECT stage, item, kind, reason FROM failures ORDER BY created")
        return [Failure(stage=stage, item=item, kind=kind, reason=reason) for stage, item, kind, reason in rows]
