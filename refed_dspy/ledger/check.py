"""Whether a ledger's file is whole: its pages, its tables and columns, the type of every value, and what it remembers
of the work. A file that was damaged, or changed by hand into what nobody wrote, is found here, not as a later error.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from refed_dspy.ledger.meta import damaged_name

MOST = 2**63 - 1
"""No whole number of a ledger is larger: SQLite has none."""
LATEST = 1e11
"""No fraction of a ledger, a time in seconds say, is as large."""
_CALLERS = {"score", "repetition"}
"""Columns of numbers that a caller gives (a filter's or a metric's score, a `rollout_id`): they have no bounds."""


def schema() -> str:
    """The SQL that makes the tables."""
    return files("refed_dspy.ledger").joinpath("schema.sql").read_text(encoding="utf-8")


def check(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError, with what is wrong, for a file that is damaged."""
    db.execute("BEGIN")  # one snapshot: another process may be writing
    try:
        (result,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise sqlite3.DatabaseError(result)
        for table, (columns, fault) in _tables().items():
            if [row[1] for row in db.execute(f"PRAGMA table_info({table})")] != columns:
                raise sqlite3.DatabaseError(f"table {table} is missing, or has other columns")
            if fault and db.execute(f"SELECT 1 FROM {table} WHERE {fault} LIMIT 1").fetchone():
                raise sqlite3.DatabaseError(f"table {table} contains an impossible value")
        if (row := db.execute("PRAGMA foreign_key_check").fetchone()) is not None:
            raise sqlite3.DatabaseError(f"a row of {row[0]} belongs to no row of {row[2]}")
        if (name := damaged_name(dict(db.execute("SELECT name, value FROM meta")))) is not None:
            raise sqlite3.DatabaseError(f"its stored {name!r} is damaged")
    finally:
        db.execute("ROLLBACK")


_whole: dict[Path, tuple[int, ...] | None] = {}
"""File → its state when this process found it whole, or had written it; None while this process writes it."""


def check_if_new(path: Path, db: sqlite3.Connection) -> None:
    """`check`, unless this process has found this file whole, and nobody else has changed it since: half a gigabyte
    takes a second, and tracking reads every minute."""
    path, state = path.resolve(), _state(path)
    if path not in _whole or _whole[path] not in {None, state}:
        check(db)
        _whole[path] = state


def begin_writing(path: Path) -> None:
    """This process writes the file, which it has checked: until `end_writing`, its changes are no reason to look."""
    _whole[path.resolve()] = None


def end_writing(path: Path) -> None:
    """The file is as this process has left it."""
    _whole[path.resolve()] = _state(path)


def _state(path: Path) -> tuple[int, ...]:
    """What is another after any change of the file; empty where it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@cache
def _tables() -> dict[str, tuple[list[str], str]]:
    """Table or view → its columns, and the SQL condition that no row of the table meets."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema())
        names = db.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        tables = {name: db.execute(f"PRAGMA table_info({name})").fetchall() for name, _ in names}
    views = {name for name, kind in names if kind == "view"}
    return {
        name: ([row[1] for row in rows], "" if name in views else " OR ".join(_fault(name, *row[1:]) for row in rows))
        for name, rows in tables.items()
    }


_KINDS = {"TEXT": "text", "BLOB": "blob", "INTEGER": "integer", "REAL": "real"}


def _fault(table: str, column: str, kind: str, not_null: int, _: Any, key: int) -> str:
    """The SQL condition that a value of `column` cannot be."""
    fault = f"typeof({column}) <> '{_KINDS[kind]}'"
    if column in _CALLERS:
        pass
    elif kind == "INTEGER":
        fault += f" OR {column} NOT BETWEEN 0 AND {MOST}"
    elif kind == "REAL":
        fault += f" OR abs({column}) > {LATEST}"
    if (table, column) == ("refs", "record"):
        fault += f" OR NOT json_valid({column})"
    if (table, column) == ("instructions", "reference"):
        fault += f" OR {column} NOT IN (SELECT position FROM refs)"
    return f"({fault})" if not_null or key else f"({column} IS NOT NULL AND ({fault}))"
