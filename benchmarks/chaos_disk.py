"""A disk that becomes full: a small file system in memory, or, where none can be mounted, a limit on files' sizes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OWN = "CHAOS_MOUNTS"
"""Set in a process that may mount file systems, which nobody else sees."""
ROOMY = 2**30
"""Bytes of such a file system while it is not full."""
APART = ["unshare", "--map-root-user", "--mount"]


class Disk:
    """A file system at `folder`. A write that does not fit fails with ENOSPC."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        _mount(folder, f"size={ROOMY}")

    def fill(self, pid: int, room: int) -> None:  # noqa: ARG002 - a disk is full for everybody
        """From now on only `room` bytes more fit."""
        until = time.monotonic() + 5
        while True:
            now = os.statvfs(self.folder)
            used = (now.f_blocks - now.f_bfree) * now.f_frsize
            try:
                _mount(self.folder, f"remount,size={used + max(room, now.f_frsize)}")
                return
            except subprocess.CalledProcessError:  # more was written meanwhile than fits
                if time.monotonic() > until:
                    raise

    def free(self) -> None:
        """There is room again."""
        _mount(self.folder, f"remount,size={ROOMY}")

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class SizeLimit:
    """Stands for the disk of `folder` where none can be mounted: a write beyond a file's largest size fails."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)

    def fill(self, pid: int, room: int) -> None:
        """From now on no file that the process `pid` writes grows beyond `room` bytes."""
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, room))

    def free(self) -> None:
        """The limit ended with the process."""

    def close(self) -> None:
        """Nothing was mounted."""


def disk(folder: Path) -> Disk | SizeLimit:
    """A disk at `folder`, which must not be there yet."""
    return Disk(folder) if OWN in os.environ else SizeLimit(folder)


def with_own_mounts(module: str) -> None:
    """Begin this process anew as `module` where it may mount file systems, with user and mount namespaces of its own.
    Returns where it may already, or nobody lets it, which it says."""
    if OWN in os.environ:
        return
    with tempfile.TemporaryDirectory() as folder:
        trial = [*APART, "mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
        try:
            subprocess.run(trial, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            print("no file system can be mounted here: a limit on files' sizes stands for the full disk", flush=True)
            return
    os.environ[OWN] = "1"
    os.execvp(APART[0], [*APART, sys.executable, "-m", module, *sys.argv[1:]])


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True, capture_output=True)
