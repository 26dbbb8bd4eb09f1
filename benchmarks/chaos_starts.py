"""One start of a command under chaos: in a process group of its own, until it ends or its event ends it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos_weather import Event

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
CODES = {"interrupt": 130, "terminate": 143}
MOST, STOPPING = 180.0, 20.0
"""Seconds after which a start hangs, and after which one that was told to stop does. Slow machines have time enough."""
FULL = (  # a file-size limit stands for the full disk: the writes really fail
    "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}));"
    "from refed_dspy.cli import main; main()"
)
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
        last = (self.err.strip().splitlines() or [""])[-1]
        if self.code and not last.strip():
            yield f"exit code {self.code} without a line"
        if CONTROL.search(self.err):
            yield "control characters on stderr"


def started(
    words: Sequence[str], home: Path, environment: dict[str, str], event: Event | None, requests: Callable[[], int]
) -> Ended:
    """Start `refed` with `words` in `home` and wait for its end. `requests`: how many the server has had."""
    full = event is not None and event.what == "full disk"
    script = ["-c", FULL.format(room=event.room)] if full and event else ["-m", "refed_dspy.cli"]
    before = requests()
    with (home / "stdout").open("w+b") as out, (home / "stderr").open("w+b") as err:
        process = subprocess.Popen(
            [sys.executable, *script, *words], cwd=home, env=environment, stdout=out, stderr=err,
            stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_heeds_ctrl_c,
        )  # fmt: skip
        try:
            met, hung = _watched(process, event, lambda: requests() - before)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        told = [file.read().decode(errors="replace") for file in (out, err)]
    return Ended(event, process.returncode, met or (full and process.returncode != 0), hung, *told)


def _heeds_ctrl_c() -> None:
    """In the child: a shell's background jobs, make's among them, hand down a SIGINT that is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _watched(process: subprocess.Popen[bytes], event: Event | None, sent: Callable[[], int]) -> tuple[bool, bool]:
    """Wait for the end of `process`. Whether the event came before, and whether it had to be ended."""
    begun = time.monotonic()
    number = SIGNALS.get(event.what) if event is not None else None
    if event is not None and number is not None:
        while process.poll() is None and time.monotonic() - begun < MOST and sent() < (event.after or 0):
            time.sleep(0.02)
        if _ended(process, event.seconds):
            return False, False
        while number != signal.SIGKILL and process.poll() is None and not _is_ready(process.pid):
            time.sleep(0.02)  # the interpreter itself is still starting
        if process.poll() is not None:
            return False, False
        os.killpg(process.pid, number)
        return True, not _ended(process, STOPPING)
    return False, not _ended(process, MOST)


def _ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
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
