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
"""Where in a filtering's folder the shards are whose rows a cluster judges, while there are any."""


def whole_run(folder: Path) -> Path:
    """The folder of the run whose shard is in `folder`; where there is no shard, `folder` itself."""
    return folder.parent.parent if (folder / EPOCH).is_file() and folder.parent.name == SHARDS else folder


class Fence:
    """Holds the writer of one folder to the lease that it was opened with."""

    def __init__(self, path: Path, epoch: str) -> None:
        self._path, self._epoch = path, epoch

    @classmethod
    def of(cls, folder: Path) -> Fence | None:
        """The fence of `folder`; None where it is no shard. Raises RunDirError where it cannot be read."""
        path = folder / EPOCH
        try:
            return cls(path, path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RunDirError(f"{path}: cannot be read: {one_line(error)}") from None

    def check(self) -> None:
        """Raises RunStopped where a later lease has taken the folder over."""
        try:
            current = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunStopped(f"{self._path}: cannot be read: {one_line(error)}") from None
        if current != self._epoch:
            raise RunStopped(f"{self._path.parent}: another worker has taken this shard over")

    @staticmethod
    def set_up(db: sqlite3.Connection) -> None:
        """For this process alone, and on the disk before it counts. To be called before anything is read."""
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA synchronous=FULL")


def take_over(folder: Path, epoch: int) -> None:
    """From now on only lease number `epoch` writes the ledger in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / EPOCH, [str(epoch)])
