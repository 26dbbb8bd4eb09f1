"""A check of the user's own, run as a command: it reads a row as JSON, and its exit code decides.

The command is the user's, as is what it does with a row: no text of a model is executed here.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import fields
from selectors import EVENT_READ, DefaultSelector
from tempfile import TemporaryFile
from threading import Event

from refed_dspy import children
from refed_dspy.config.keys import know_environment, without_keys
from refed_dspy.errors import CheckFailed, one_line
from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.records import DataRow, json_default

NO_REASON = "no reason given"
_READ = 4_096
"""Bytes that are kept of what a check writes: the first of its output, the last of its errors."""
_LOOKS = 0.05
"""Seconds between two looks at a check: it may have ended, and left its pipes to a process that it started."""


class CommandCheck(TextFilter):
    """Keeps a row for which `run` exits with 0, drops it at 1 with the first line of its output as the reason. Anything
    else, or nothing within so many `seconds`, is no decision: CheckFailed. At most `at_once` run at a time."""

    name = "command"
    of_instruction = False

    def __init__(self, run: Sequence[str], seconds: float = 10, at_once: int = 4) -> None:
        self._command, self._seconds, self._at_once = list(run), seconds, at_once
        self._threads = ThreadPoolExecutor(at_once, "refed-check")
        know_environment()

    async def checked(self, row: DataRow) -> Decision:
        """As `check`, without blocking the event loop. A cancellation ends once the check is killed."""
        stop = Event()
        work = self._threads.submit(self.check, row, stop)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.gather(asyncio.wrap_future(work), return_exceptions=True)
            raise

    def checks(self, rows: Iterable[DataRow]) -> Generator[Future[Decision], None, None]:
        """The check of each row, in their order, begun a few rows ahead. Closed, it kills those at work."""
        stop, ahead = Event(), deque[Future[Decision]]()
        try:
            for row in rows:
                ahead.append(self._threads.submit(self.check, row, stop))
                if len(ahead) > 4 * self._at_once:
                    yield ahead[0]
                    ahead.popleft()
            yield from ahead
        finally:
            stop.set()
            wait([each for each in ahead if not each.cancel()])

    def check(self, row: DataRow, stop: Event | None = None) -> Decision:
        """Raises CheckFailed, at once where it is to `stop`."""
        inherited = {"system": row.stands_under, "fields": dict(row.fields)}
        shown = {each.name: getattr(row, each.name) for each in fields(row)} | inherited
        with TemporaryFile() as given:  # not a pipe, which a long row blocks where nobody reads it
            given.write(json.dumps(shown, default=json_default).encode() + b"\n")
            given.seek(0)
            try:
                process = subprocess.Popen(  # noqa: S603 — a list of the user's, and no shell
                    self._command, env=children.environment(), start_new_session=True,
                    stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                raise self._failed(f"cannot be started: {getattr(error, 'strerror', None) or error}") from None
            with process:
                try:
                    written = self._written(process, stop or Event())
                finally:
                    with suppress(OSError):  # nothing is left of its session
                        os.killpg(process.pid, signal.SIGKILL)
        return self._decision(process.returncode, *(without_keys(each.decode(errors="replace")) for each in written))

    def _written(self, process: subprocess.Popen[bytes], stop: Event) -> tuple[bytes, bytes]:
        """The first that `process` wrote to its output, the last to its errors, once it ended. Raises CheckFailed."""
        end, output, errors = time.monotonic() + self._seconds, b"", b""
        with DefaultSelector() as pipes:
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipes.register(pipe, EVENT_READ)
            while True:
                ended = process.poll() is not None  # asked before reading: then all that it wrote is there
                ready = pipes.select(0 if ended else _LOOKS) if pipes.get_map() else []
                for key, _ in ready:
                    if not (read := os.read(key.fd, 65_536)):
                        pipes.unregister(key.fileobj)
                    elif key.fileobj is process.stdout:
                        output = (output + read)[:_READ]
                    else:
                        errors = (errors + read)[-_READ:]
                late = time.monotonic() > end
                if ended and (late or not ready):
                    return output, errors
                if not ended and (late or stop.is_set()):
                    raise self._failed(f"no decision within {self._seconds:g} s" if late else "stopped")
                if not pipes.get_map():  # as a rule it is about to end
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(_LOOKS)

    def _decision(self, code: int, output: str, errors: str) -> Decision:
        why = errors.strip().splitlines()[-1:]
        if code == 0:
            return Decision(True)
        if code == 1:
            return Decision(False, one_line([*output.strip().splitlines(), *why, NO_REASON][0], 160))
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code} ({signal.strsignal(-code)})"
        raise self._failed(": ".join([how, *why]))

    def _failed(self, what: str) -> CheckFailed:
        return CheckFailed(f"{one_line(self._command[0], 60)}: {one_line(what, 160)}")
