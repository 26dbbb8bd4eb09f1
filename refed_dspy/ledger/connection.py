"""A ledger's file: who is at work on it, and connections to it. Whatever SQLite finds wrong with it is one error that
says what to do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from weakref import WeakSet

from filelock import FileLock, Timeout

from refed_dspy.errors import FolderInUse, RunDirError, RunStopped, one_line
from refed_dspy.files import write_text
from refed_dspy.ledger.format import FAILED, intact

FILE = "ledger.sqlite"
"""The file's name in a run's folder."""
LOCK = ".lock"
"""The file that the process at work in a folder holds locked."""
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_FSYNC}
"""What SQLite says where there is no room, a quota or a limit of a file's size among the reasons."""
_taken = WeakSet[FileLock]()
"""The locks that this process has taken; some are released again."""
EPOCH = "epoch"
"""The file's name in a shard's folder."""
SHARDS = "shards"
"""Where in a run's folder its shards' are."""
JUDGING = "judging"
"""Where in a filtering's folder version 0.2.0 had the shards whose rows a cluster judged, while there were any."""


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


def take_lock(folder: Path) -> FileLock:
    """The lock of the work in `folder`, taken. Raises FolderInUse, OSError where no lock can be made."""
    path = str((folder / LOCK).absolute())
    lock = FileLock(path, timeout=0.1, poll_interval=0.01, thread_local=False)  # a look at it takes a moment
    try:
        lock.acquire()
    except Timeout:
        if any(other.is_locked and other.lock_file == path for other in _taken):
            why = "this process is still at work here; let it end (after a break: await asyncio.sleep(2)) or "
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


def whole_run(folder: Path) -> Path:
    """The folder of the run whose shard is in `folder`; where there is no shard, `folder` itself."""
    return folder.parent.parent if (folder / EPOCH).is_file() and folder.parent.name == SHARDS else folder


class Fence:
    """Holds the writer of a shard's folder, which workers on several machines may reach, to lease number `epoch`.

    SQLite's log in shared memory does not work between machines, and file locks are not reliable on every network file
    system. Such a ledger is therefore opened for one process alone, each commit is on the disk before it counts, and
    the folder has a file with the number of the lease that may write. A later lease writes a higher number; the holder
    of an earlier one can then write nothing more, even if it was frozen and wakes up.
    """

    def __init__(self, path: Path, epoch: int) -> None:
        self._path, self.epoch = path, epoch

    @classmethod
    def of(cls, folder: Path, epoch: int | None = None) -> Fence | None:
        """The fence of `folder`, for lease number `epoch`, or else for the last one; None where it is no shard.

        Raises RunDirError where it cannot be read, RunStopped where `epoch` is not the last lease.
        """
        path = folder / EPOCH
        try:
            last = cls(path, _read(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunDirError(f"{path}: cannot be read: {one_line(error)}") from None
        if epoch not in {None, last.epoch}:
            raise _taken_over(folder)
        return last

    def check(self) -> None:
        """Raises RunStopped where a later lease has taken the folder over."""
        try:
            current = _read(self._path)
        except (OSError, ValueError) as error:
            raise RunStopped(f"{self._path}: cannot be read: {one_line(error)}") from None
        if current != self.epoch:
            raise _taken_over(self._path.parent)

    @staticmethod
    def set_up(db: sqlite3.Connection) -> None:
        """For this process alone, and on the disk before it counts. To be called before anything is read."""
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA synchronous=FULL")


def take_over(folder: Path, epoch: int) -> None:
    """From now on only lease number `epoch` writes the ledger in `folder`. Raises as `Fence.of`, RunStopped where a
    later lease does."""
    if (last := Fence.of(folder)) is not None and last.epoch > epoch:
        raise _taken_over(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / EPOCH, [str(epoch)])


def _read(path: Path) -> int:
    return int(path.read_text(encoding="utf-8"))


def _taken_over(folder: Path) -> RunStopped:
    return RunStopped(f"{folder}: another worker has taken this shard over")
