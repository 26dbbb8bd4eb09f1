"""Connections to a ledger's file: whatever SQLite finds wrong with it is one error that says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from refed_dspy.errors import RunDirError, one_line

FORMAT = 6
"""The format of the file: its `user_version`. Others are refused."""


@contextmanager
def connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection, which is closed again where the block raises. Raises RunDirError for a sqlite3.Error in it."""
    try:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10, check_same_thread=False)
    except sqlite3.Error as error:
        raise damaged(path, error) from None
    db.text_factory = partial(_text, path)
    try:
        yield db
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.Error):
            raise damaged(path, error) from None
        raise


def _text(path: Path, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise damaged(path, "a text is not UTF-8") from None


def damaged(path: Path, why: object) -> RunDirError:
    """The error for a ledger at `path` that cannot be read."""
    why = one_line(why)
    return RunDirError(f"{path}: not a readable ledger ({why}); restore it from a backup or choose another folder")


def is_made(path: Path, db: sqlite3.Connection) -> bool:
    """Whether the file has its tables. Raises RunDirError for a file of another format, sqlite3.DatabaseError for one
    that is no ledger."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in {0, FORMAT}:
        raise RunDirError(
            f"{path}: written by another version (format {version}, this one uses {FORMAT}); use that version"
        )
    if version == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise sqlite3.DatabaseError("it is another database")
    return bool(version)
