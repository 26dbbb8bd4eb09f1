"""Checksums of the texts in a ledger: a bit that flipped on a disk must not be exported as what a model wrote.

They are written with the texts and compared by the SQL function `intact` wherever these are read. Rows of an earlier
version have none.
"""

from __future__ import annotations

import sqlite3
import zlib

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


def add(db: sqlite3.Connection) -> None:
    """The columns of checksums, empty, in a file of an earlier format."""
    for table, columns in _missing(db).items():
        for column in columns:
            db.execute(f"ALTER TABLE {table} ADD COLUMN {column} INTEGER")


def presume(db: sqlite3.Connection) -> None:
    """The same for this connection alone: another process, of that version, may be writing the file."""
    for table, columns in _missing(db).items():
        missing = ", ".join(f"NULL AS {column}" for column in columns)
        db.execute(f"CREATE TEMP VIEW {table} AS SELECT *, {missing} FROM main.{table}")
