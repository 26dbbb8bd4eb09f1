"""Whether a ledger's file is whole: its pages, its tables and columns, the type of every value, and what it remembers
of the work. A file that was damaged, or changed by hand into what nobody wrote, is found here, not as a later error.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
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
        check_tables(db)
        for table, (_, fault) in _tables().items():
            if fault and db.execute(f"SELECT 1 FROM {table} WHERE {fault} LIMIT 1").fetchone():
                raise sqlite3.DatabaseError(f"table {table} contains an impossible value")
        if (row := db.execute("PRAGMA foreign_key_check").fetchone()) is not None:
            raise sqlite3.DatabaseError(f"a row of {row[0]} belongs to no row of {row[2]}")
        if db.execute(_wrong_sums()).fetchone() is not None:
            raise sqlite3.DatabaseError("what its calls used is not what they add up to")
    finally:
        db.execute("ROLLBACK")


def check_tables(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError where a table or a column is missing, or what is remembered of the work is damaged.
    Reads a page or two."""
    for table, (columns, _) in _tables().items():
        if [row[1] for row in db.execute(f"PRAGMA table_info({table})")] != columns:
            raise sqlite3.DatabaseError(f"table {table} is missing, or has other columns")
    if (name := damaged_name(dict(db.execute("SELECT name, value FROM meta")))) is not None:
        raise sqlite3.DatabaseError(f"its stored {name!r} is damaged")


def check_if_new(path: Path, db: sqlite3.Connection) -> None:
    """`check`, unless the file is as it was when it was last found whole or closed in order: with a million samples it
    takes a minute. Then only that the tables are there."""
    state = _state(path)
    if _noted(path) == state:
        check_tables(db)
    else:
        check(db)
        _note(path, state)


def close(path: Path, db: sqlite3.Connection, *, wrote: bool) -> None:
    """Close the file, and note that it is whole: the process `wrote` it, or nobody has changed it since it was looked
    at. The last connection to close moves SQLite's log into the file."""
    whole = wrote or _noted(path) == _state(path)
    db.close()
    if whole:
        _note(path, _state(path))


_CHECKED = ".checked"
"""The file beside a ledger that holds the state in which it was last found whole."""


def _noted(path: Path) -> str | None:
    try:
        return (path.parent / _CHECKED).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _note(path: Path, state: str) -> None:
    with suppress(OSError):  # a folder that may only be read is checked each time
        (path.parent / _CHECKED).write_text(state, encoding="utf-8")


def _state(path: Path) -> str:
    """What is another after any change of the file, or of its log, where what was written last may be."""
    stats = []
    for file in (path, path.with_name(f"{path.name}-wal")):
        with suppress(OSError):
            stats.append(file.stat())
    return " ".join(
        f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        for stat in stats if stat.st_size
    )  # fmt: skip


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


def _wrong_sums() -> str:
    """The SQL that finds a row of `usage` that is not the sum of its calls."""
    names = [name for name in _tables()["usage"][0] if name not in {"stage", "model", "endpoint", "first"}]
    sums = ", ".join(f"total({name})" for name in names)
    counted = f"SELECT stage, model, endpoint, {sums} FROM counted GROUP BY 1, 2, 3"
    noted = f"SELECT stage, model, endpoint, {', '.join(names)} FROM usage WHERE calls"
    return f"SELECT * FROM ({counted} EXCEPT {noted}) UNION ALL SELECT * FROM ({noted} EXCEPT {counted}) LIMIT 1"


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
