"""One start of a command under chaos: in a process group of its own, until it ends or its event ends it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.chaos_disk import Disk, SizeLimit
from benchmarks.chaos_weather import Event
from benchmarks.nodes import Nodes

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
CODES = {"interrupt": 130, "terminate": 143}
MOST, STOPPING = 180.0, 20.0
"""Seconds after which a start hangs, and after which one that was told to stop does. Slow machines have time enough."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Ended:
    """How a start ended. `code` as subprocess tells it; `met`: its event came before it ended; `hung`: it did not end
    by itself."""

    event: Event | None
    code: int
    met: bool
    hung: bool
    out: str
    err: str

    @property
    def killed(self) -> bool:
        return self.met and self.event is not None and self.event.what == "kill"

    @property
    def promises(self) -> int:
        """How many `broken` looks at: of one that was killed, that it ended; else its code, line and words as well."""
        return 1 if self.hung or self.killed else 5

    def broken(self) -> Iterator[str]:
        """What is wrong with its exit code and with what it told."""
        if self.hung:
            yield "it did not end by itself"
            return
        if self.killed:
            return
        signalled = CODES.get(self.event.what) if self.met and self.event is not None else None
        if self.code not in {0, 1, 2, signalled}:
            yield f"exit code {self.code}"
        if "Traceback (most recent call last)" in self.err + self.out:
            yield "a traceback"
        if self.code and not self.last.strip():
            yield f"exit code {self.code} without a line"
        if CONTROL.search(self.err):
            yield "control characters on stderr"

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return (self.err.strip().splitlines() or [""])[-1]


@dataclass(frozen=True)
class Starter:
    """Starts commands in `home`, whose disk is `disk`, in this environment; `nodes`: a cluster's, of which one may be
    killed."""

    home: Path
    environment: dict[str, str]
    disk: Disk | SizeLimit
    nodes: Nodes | None = None

    def start(self, words: str, event: Event | None, happened: Callable[[], int], every: float = 0.02) -> Ended:
        """Start `refed` with `words` and wait for its end. `happened`: what the event counts, looked at so often."""
        before = happened()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # not on the disk that may be full
            process = subprocess.Popen(
                [sys.executable, "-m", "refed_dspy.cli", *shlex.split(words)], cwd=self.home, env=self.environment,
                stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_heeds_ctrl_c,
            )  # fmt: skip
            try:
                met = event is not None and _is_due(process, event, lambda: happened() - before, every)
                if event is not None and met:
                    self._strike(process.pid, event)
                hung = not _has_ended(process, STOPPING if event is not None and met and event.what in CODES else MOST)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self.disk.free()
            noticed = event is not None and met and (event.what != "full disk" or process.returncode != 0)
            return Ended(event, process.returncode, noticed, hung, _text(out), _text(err))

    def _strike(self, pid: int, event: Event) -> None:
        if event.what == "full disk":
            self.disk.fill(pid, event.room)
        elif event.what == "node":
            assert self.nodes is not None
            self.nodes.kill(self.nodes.there[0])
            self.nodes.add()
        else:
            os.killpg(pid, SIGNALS[event.what])


def _heeds_ctrl_c() -> None:
    """In the child: a shell's background jobs, make's among them, hand down a SIGINT that is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _is_due(process: subprocess.Popen[bytes], event: Event, happened: Callable[[], int], every: float) -> bool:
    """Wait for the moment of `event`. Whether `process` is still there then."""
    until = time.monotonic() + MOST
    while process.poll() is None and time.monotonic() < until and happened() < (event.after or 0):
        time.sleep(every)
    if _has_ended(process, event.seconds):
        return False
    while event.what in CODES and process.poll() is None and not _is_ready(process.pid):
        time.sleep(every)  # the interpreter itself is still starting
    return process.poll() is None


def _has_ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether it ends within so many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _is_ready(pid: int) -> bool:
    """Whether the process has a handler of its own for SIGTERM, by which it has one for Ctrl-C too."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    found = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    return bool(found and int(found[1], 16) >> (signal.SIGTERM - 1) & 1)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
