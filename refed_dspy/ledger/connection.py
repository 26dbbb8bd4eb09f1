"""A ledger's file: who is at work on it, connections to it, its format, and whether it is whole. A file that was
damaged, or changed by hand into what nobody wrote, is found when it is opened, not as a later error; whatever SQLite
finds wrong with it is one error that says what to do."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from weakref import WeakSet

from filelock import FileLock, Timeout

from refed_dspy.errors import FolderInUse, RunDirError, RunStopped, one_line
from refed_dspy.ledger import sums
from refed_dspy.ledger.sums import FAILED, checksum, intact

FILE = "ledger.sqlite"
"""The file's name in a run's folder."""
LOCK = ".lock"
"""The file that the process at work in a folder holds locked."""
FORMAT, OLDER = 9, (7, 8)
"""The format of the file (its `user_version`), and those before, which are read as they are and brought to this one
when they are opened for writing: that of 0.2.0 has no checksums, and neither has STRICT tables. Others are refused."""
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_FSYNC}
"""What SQLite says where there is no room, a quota or a limit of a file's size among the reasons."""


@contextmanager
def connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection, which is closed again where the block raises. Raises RunDirError for a sqlite3.Error in it."""
    try:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10, check_same_thread=False)
    except sqlite3.Error as error:
        raise damaged(path, error) from None
    db.text_factory = partial(_text, path)
    db.create_function("intact", -1, intact, deterministic=True)
    try:
        yield db
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.Error | UnicodeDecodeError):  # the second: of a column's name
            raise damaged(path, error) from None
        raise


def _text(path: Path, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise damaged(path, "a text is not UTF-8") from None


def damaged(path: Path, why: object) -> RunDirError:
    """The error for a ledger at `path` that cannot be read, or that is whole and cannot be opened: on a full disk, or
    without the right to write."""
    code = getattr(why, "sqlite_errorcode", None)
    if str(why) == FAILED:
        why = "a text is not what was written: its checksum is another"
    why = one_line(why)
    if code in _FULL:
        return RunDirError(f"{path}: could not be written ({why}); make room, then run the same command again")
    if code is not None and code & 0xFF == sqlite3.SQLITE_READONLY:  # the low byte, of whatever kind it is
        return RunDirError(f"{path}: reading it, too, takes the right to write in its folder ({why}); copy the folder")
    return RunDirError(f"{path}: not a readable ledger ({why}); restore it from a backup or choose another folder")


def version_of(db: sqlite3.Connection) -> int:
    """The format of the file; 0 before it is made."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raises RunDirError where what is read in the block is damaged."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise damaged(path, error) from None


def is_damage(error: BaseException | None) -> bool:
    """Whether `error` is the file's fault, not a wrong statement of ours."""
    if not isinstance(error, sqlite3.DatabaseError):
        return False
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    # The second: a flipped bit made a text a blob.
    return str(error) in {FAILED, "JSON cannot hold BLOB values"} or code in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_IOERR,
    }


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
    sums.add(db)
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


@contextmanager
def transaction(path: Path, db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """A transaction of `db`, which is the file at `path`: committed whole at the end of the block, or not at all.

    Raises RunStopped where it fails.
    """
    try:
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
    except BaseException as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if not isinstance(error, sqlite3.Error):
            raise
        todo = "make room, then resume"
        if isinstance(error, sqlite3.IntegrityError):
            todo = "another process seems to write it, too; stop that one, then resume"
        raise RunStopped(f"{path}: could not be written ({one_line(error)}); {todo}") from error


class OpenFiles:
    """The files of a ledger that this process writes, compared before each transaction with those at its path: what is
    written to a file that was removed is lost, and whoever finds another `.lock` there writes too."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._db = db
        self._path, self._log, self._lock = path, path.with_name(f"{path.name}-wal"), path.parent / LOCK
        self._held = {file: _identity(stats) for file in (path, self._lock) if (stats := _stats(file))}
        self._longest: dict[Path, int] = {}

    def lost(self) -> str:
        """What became of the file if it is not at its path any more; "" where it is. It can still be written: its
        folder may have been moved.

        Raises RunStopped where it must not be written: another process has taken the lock, or a part was cut off.
        """
        found = {file: _stats(file) for file in (self._path, self._log, self._lock)}
        if (why := self._moved(found[self._path], self._path)) is not None:
            return f"{self._path} was {why} while it was written, so nothing more is asked; resume where it is now"
        if self._moved(found[self._lock], self._lock) is not None:
            raise RunStopped(
                f"{self._lock} was removed or replaced, so another process may write {self._path.parent}, too; stop "
                "that one, then resume"
            )
        for file in (self._path, self._log):
            stats, longest = found[file], self._longest.get(file, 0)
            if longest and stats is None:
                return f"{file} was removed while it was written, so nothing more is asked; resume"
            if stats is not None and stats.st_size < longest and not (file == self._log and self._is_whole(stats)):
                raise RunStopped(f"{file} was cut off while it was written; what is whole is still there: resume")
            self._longest[file] = stats.st_size if stats is not None else 0
        return ""

    def _is_whole(self, log: os.stat_result) -> bool:
        """Whether a log that has become shorter holds all that SQLite knows to be in it: whoever copies it to the file
        (`wal_checkpoint(TRUNCATE)`, of a backup say) may cut it off after that."""
        try:
            _, frames, _ = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            (page,) = self._db.execute("PRAGMA page_size").fetchone()
        except sqlite3.Error:
            return False
        return bool(frames <= 0 or log.st_size >= 32 + frames * (24 + page))

    def _moved(self, stats: os.stat_result | None, file: Path) -> str | None:
        if stats is None:
            return "removed"
        return None if _identity(stats) == self._held.get(file) else "replaced"


def _stats(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _identity(stats: os.stat_result) -> tuple[int, int]:
    return stats.st_dev, stats.st_ino


def is_at_work(folder: Path) -> bool:
    """Whether a process works in `folder`: whether anyone holds its lock."""
    import fcntl  # not on Windows

    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held; or on a file system without such locks, where the file is there only while it is held
        return True
    finally:
        os.close(file)
    return False


_taken = WeakSet[FileLock]()
"""The locks that this process has taken; some are released again."""


def take_lock(folder: Path) -> FileLock:
    """The lock of the work in `folder`, taken. Raises FolderInUse, OSError where no lock can be made."""
    path = str((folder / LOCK).absolute())
    lock = FileLock(path, timeout=0.1, poll_interval=0.01, thread_local=False)  # a look at it takes a moment
    try:
        lock.acquire()
    except Timeout:
        if any(other.is_locked and other.lock_file == path for other in _taken):
            why = "this process is still working on this run; let it end (after a break: await asyncio.sleep(2)) or "
            why += "restart"
        else:
            why = "another process is working on this run; wait for it or stop it"
        raise FolderInUse(f"{folder}: {why}") from None
    _taken.add(lock)
    return lock


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The lock of the work in `folder`, while its ledger is not open for writing: the work is running all the same.

    Where no lock can be made, as in a read-only folder, nobody else can work either. Raises FolderInUse.
    """
    lock = None
    with suppress(OSError):
        lock = take_lock(folder)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
