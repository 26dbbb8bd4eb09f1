"""The ledger of a shard, which workers on several machines may reach: only the lease that the folder names writes it.

SQLite's log in shared memory does not work between machines, and file locks are not reliable on every network file
system. Such a ledger is therefore opened for one process alone, each commit is on the disk before it counts, and the
folder has a file with the number of the lease that may write. A later lease writes a higher number; the holder of an
earlier one can then write nothing more, even if it was frozen and wakes up.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from refed_dspy.errors import RunDirError, RunStopped, one_line
from refed_dspy.files import write_text

EPOCH = "epoch"
"""The file's name in a shard's folder."""
SHARDS = "shards"
"""Where in a run's folder its shards' are."""
JUDGING = "judging"
"""Where in a filtering's folder version 0.2.0 had the shards whose rows a cluster judged, while there were any."""


def whole_run(folder: Path) -> Path:
    """The folder of the run whose shard is in `folder`; where there is no shard, `folder` itself."""
    return folder.parent.parent if (folder / EPOCH).is_file() and folder.parent.name == SHARDS else folder


class Fence:
    """Holds the writer of one folder to lease number `epoch`."""

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
