"""The format of a ledger's file: its tables, its checksums, and whether a file is whole. One that was damaged, or
changed by hand into what nobody wrote, is found when it is opened or where it is read, not as a later error.

Checksums are of texts: a bit that flipped on a disk must not be exported as what a model wrote. They are written with
the texts and compared by the SQL function `intact` wherever these are read. Rows of an earlier version have none.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path

from refed_dspy.errors import RunDirError

FORMAT, OLDER = 9, (7, 8)
"""The format of the file (its `user_version`), and those before, which are read as they are and brought to this one
when they are opened for writing: that of 0.2.0 has no checksums, and neither has STRICT tables. Others are refused."""
FAILED = "user-defined function raised exception"
"""What SQLite says where `intact` raises."""
COLUMNS = {"meta": ["sum"], "answers": ["sum"], "reasoning": ["sum"], "refs": ["sum"],
           "instructions": ["sum", "sample_sum"]}  # fmt: skip
"""Table → its columns of checksums. Format 8 has that of `meta` not, and format 7 none."""


def checksum(*texts: str | None) -> int:
    """Of `texts` in this order."""
    return zlib.crc32("\0".join(str(text or "") for text in texts).encode("utf-8", "surrogatepass"))


def intact(stored: int | None, *texts: str | None) -> str | None:
    """The first of `texts`. Raises ValueError where they are not those of which `stored` is the checksum."""
    if stored is not None and stored != checksum(*texts):
        raise ValueError("its checksum is another")
    return texts[0]


def _missing(db: sqlite3.Connection) -> dict[str, list[str]]:
    """Table → the columns of checksums that it has not."""
    there = {table: {row[1] for row in db.execute(f"PRAGMA main.table_info({table})")} for table in COLUMNS}
    missing = {table: [name for name in names if name not in there[table]] for table, names in COLUMNS.items()}
    return {table: names for table, names in missing.items() if names and there[table]}


def add_sums(db: sqlite3.Connection) -> None:
    """The columns of checksums, empty, in a file of an earlier format."""
    for table, columns in _missing(db).items():
        for column in columns:
            db.execute(f"ALTER TABLE {table} ADD COLUMN {column} INTEGER")


def presume_sums(db: sqlite3.Connection) -> None:
    """The same for this connection alone: another process, of that version, may be writing the file."""
    for table, columns in _missing(db).items():
        missing = ", ".join(f"NULL AS {column}" for column in columns)
        db.execute(f"CREATE TEMP VIEW {table} AS SELECT *, {missing} FROM main.{table}")


def version_of(db: sqlite3.Connection) -> int:
    """The format of the file; 0 before it is made."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def is_made(path: Path, db: sqlite3.Connection, format_: int = FORMAT) -> bool:
    """Whether the file has its tables. Raises RunDirError for a file of another format, sqlite3.DatabaseError for one
    that is another database."""
    version = version_of(db)
    if version not in {0, format_, *(OLDER if format_ == FORMAT else ())}:
        raise RunDirError(
            f"{path}: written by another version (format {version}, this one uses {format_}); use that version"
        )
    if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise sqlite3.DatabaseError("it is another database")
    return bool(version)


def schema() -> str:
    """The SQL that makes the tables."""
    return files("refed_dspy.ledger").joinpath("schema.sql").read_text(encoding="utf-8")


def set_up(path: Path, db: sqlite3.Connection) -> None:
    """Make the tables of a new file, or bring one of an earlier format to this one: whole or not at all, since a reader
    may look meanwhile. Raises as `is_made` and `check`."""
    if not is_made(path, db):
        db.executescript(f"BEGIN IMMEDIATE; {schema()} PRAGMA user_version={FORMAT}; COMMIT")
    elif version_of(db) != FORMAT:
        db.execute("BEGIN IMMEDIATE")
        _renew(db)
        _check(db)
        db.execute("COMMIT")


def _renew(db: sqlite3.Connection) -> None:
    """The columns of checksums and the constraints that the tables of this format have, in a file of an earlier one. No
    row is copied: what is written in a file does not depend on constraints, so that SQLite lets them be replaced."""
    add_sums(db)
    check_tables(db)
    for name, value in db.execute("SELECT name, value FROM meta WHERE sum IS NULL").fetchall():
        db.execute("UPDATE meta SET sum = ? WHERE name = ?", (checksum(value, name), name))
    db.execute("PRAGMA writable_schema=ON")
    with _empty() as new:
        tables = new.execute("SELECT sql, name FROM sqlite_master WHERE type = 'table'").fetchall()
    db.executemany("UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = ?", tables)
    (seen,) = db.execute("PRAGMA schema_version").fetchone()
    db.execute(f"PRAGMA schema_version={seen + 1}")  # other connections read it anew
    db.execute("PRAGMA writable_schema=RESET")
    db.execute(f"PRAGMA user_version={FORMAT}")


@contextmanager
def _empty() -> Iterator[sqlite3.Connection]:
    """A new ledger, in memory."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(schema())
        yield db


_COLUMNS = """
SELECT m.name, p.name FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type IN ('table', 'view')
ORDER BY 1, p.cid
"""


@cache
def _columns() -> list[tuple[str, str]]:
    """(table or view, column) of each column of a ledger, in order."""
    with _empty() as db:
        return db.execute(_COLUMNS).fetchall()


def check(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError, with what is wrong, for a file that is damaged: its pages, the types and bounds of
    its values (by the constraints of its tables), what a row belongs to, its sums, what it remembers of the work."""
    db.execute("BEGIN")  # one snapshot: another process may be writing
    try:
        _check(db)
    finally:
        db.execute("ROLLBACK")


def _check(db: sqlite3.Connection) -> None:
    (result,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if result != "ok":
        raise sqlite3.DatabaseError(result)
    check_tables(db)
    if (row := db.execute("PRAGMA foreign_key_check").fetchone()) is not None:
        raise sqlite3.DatabaseError(f"a row of {row[0]} belongs to no row of {row[2]}")
    names = [name for table, name in _columns() if table == "usage"][4:]
    sums_ = ", ".join(f"total({name})" for name in names)
    counted = f"SELECT stage, model, endpoint, {sums_} FROM counted GROUP BY 1, 2, 3"
    noted = f"SELECT stage, model, endpoint, {', '.join(names)} FROM usage WHERE calls"
    wrong = f"SELECT * FROM ({counted} EXCEPT {noted}) UNION ALL SELECT * FROM ({noted} EXCEPT {counted}) LIMIT 1"
    if db.execute(wrong).fetchone() is not None:
        raise sqlite3.DatabaseError("what its calls used is not what they add up to")


def check_tables(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError where a table or a column is missing, or what is remembered of the work is not what
    was written. Reads a page or two."""
    if found := {table for table, _ in set(_columns()).symmetric_difference(db.execute(_COLUMNS))}:
        raise sqlite3.DatabaseError(f"table {min(found)} is missing, or has other columns")
    for name, value, sum_ in db.execute("SELECT name, value, sum FROM meta"):
        with suppress(ValueError, RecursionError):
            if sum_ in {None, checksum(value, name)}:
                json.loads(value)
                continue
        raise sqlite3.DatabaseError(f"its stored {name!r} is damaged")


def check_if_new(path: Path, db: sqlite3.Connection) -> None:
    """`check`, unless the file is as it was when it was last found whole or closed in order: with a million samples it
    takes a minute. Then only that the tables are there."""
    state = file_state(path)
    if _noted(path) == state:
        check_tables(db)
    else:
        check(db)
        note_whole(path, state)


def close(path: Path, db: sqlite3.Connection, *, wrote: bool) -> None:
    """Close the file, and note that it is whole: the process `wrote` it, or nobody has changed it since it was looked
    at. The last connection to close moves SQLite's log into the file."""
    whole = wrote or _noted(path) == file_state(path)
    db.close()
    if whole:
        note_whole(path, file_state(path))


_CHECKED = ".checked"
"""The file beside a ledger that holds the state in which it was last found whole."""


def _noted(path: Path) -> str | None:
    try:
        return (path.parent / _CHECKED).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def note_whole(path: Path, state: str) -> None:
    """Note that the file at `path` is whole in this `state`."""
    with suppress(OSError):  # a folder that may only be read is checked each time
        (path.parent / _CHECKED).write_text(state, encoding="utf-8")


def file_state(path: Path) -> str:
    """What is another after any change of the file, or of its log, where what was written last may be."""
    stats = []
    for file in (path, path.with_name(f"{path.name}-wal")):
        with suppress(OSError):
            stats.append(file.stat())
    return " ".join(
        f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        for stat in stats if stat.st_size
    )  # fmt: skip
