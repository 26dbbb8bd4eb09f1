"""Tracking in a thread beside the work: at intervals, and without ever failing or delaying the work."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from refed_dspy.programs.mlflow_address import patience, tracking_uri, without_secrets
from refed_dspy.tracking.store import NotTracked, Store, noted_run

log = logging.getLogger("refed_dspy.tracking")
LONGEST_WAIT = 60.0
"""Seconds that the work waits for MLflow at most, in all: in `update`, and at its end."""
AT_STOP = 0.4
"""Seconds that Ctrl-C leaves for MLflow, after the calls' own."""
LOOKS = 0.05
"""Seconds between two looks whether it is done, in an event loop."""


class Tracker:
    """Copies nothing: where nobody wants to track."""

    def update(self) -> None:
        """Copy what there is by now. Returns when that is done, or has taken too long."""

    async def told(self) -> None:
        """Copy the rest, in an event loop, where Ctrl-C gets through. Returns when that is done, or takes too long."""

    def finish(self, at_stop: float | None = None) -> None:
        """Copy the rest. Never raises: what could not be copied is a warning.

        `at_stop`: Ctrl-C has ended the work; MLflow gets so many seconds, and none if it was never reached.
        """


class MlflowTracker(Tracker):
    """Copies a folder to MLflow at once, every `interval` seconds, and once more at the end."""

    def __init__(self, folder: Path, copy: Callable[[Store, bool], None], interval: float) -> None:
        self._store, self._copy_to_store, self._interval = Store(folder), copy, interval
        self._ended, self._wake, self._copied = threading.Event(), threading.Event(), threading.Event()
        self._warned = self._given_up = False
        self._left = min(LONGEST_WAIT, patience())
        self._thread = threading.Thread(target=self._work, name="refed-tracking", daemon=True)
        self._thread.start()

    def update(self) -> None:
        self._copied.clear()
        self._wake.set()
        with self._waiting() as left:
            self._copied.wait(left)

    async def told(self) -> None:
        self._end()
        with self._waiting() as left:
            for _ in range(int(left / LOOKS)):
                if not self._thread.is_alive():
                    return
                await asyncio.sleep(LOOKS)

    def finish(self, at_stop: float | None = None) -> None:
        self._given_up = at_stop is not None and self._store.client is None
        self._end()
        with self._waiting() as left:
            self._thread.join(0 if self._given_up else left if at_stop is None else at_stop)
        if self._thread.is_alive():
            self._given_up = True
            self._warn("it does not answer" if at_stop is None else "there was no time")

    @contextmanager
    def _waiting(self) -> Iterator[float]:
        """The seconds that are left to wait; what the block takes is gone."""
        began = time.monotonic()
        try:
            yield self._left
        finally:
            self._left = max(0.0, self._left - (time.monotonic() - began))

    def _end(self) -> None:
        self._ended.set()
        self._wake.set()

    def _work(self) -> None:
        self._copy_now(last=False)
        while not self._ended.is_set():
            self._wake.wait(self._interval)
            self._wake.clear()
            if not self._ended.is_set():
                self._copy_now(last=False)
                self._copied.set()
        self._copy_now(last=True)

    def _copy_now(self, last: bool) -> None:
        try:
            self._store.connect()
            if not self._given_up:
                self._copy_to_store(self._store, last)
        except NotTracked as error:
            if last or not self._warned:
                self._warn(str(error))
        except Exception:  # a bug here must not end the paid work; the log gets its traceback
            log.exception("tracking failed; the work continues")

    def _warn(self, reason: str) -> None:
        self._warned = True
        log.warning(
            "MLflow at %s was not updated (%s); %s: refed track %s",
            without_secrets(tracking_uri()), without_secrets(reason),
            "later" if self._ended.is_set() else "the work continues; later", shlex.quote(str(self._store.folder)),
        )  # fmt: skip


def wanted(track: bool | None, by_default: bool = True) -> bool:
    """Whether to track: as `track` says; if it is None, as REFED_TRACK says; else `by_default`."""
    if track is not None:
        return track
    said = os.environ.get("REFED_TRACK", "").strip().lower()
    return said not in {"false", "0", "no", "off"} if said else by_default


def run_wanted(track: bool | None, folder: Path) -> bool:
    """Whether to track a run, of whose kind there are many: where one asks for it, or did at an earlier start, or where
    MLFLOW_TRACKING_URI is set."""
    return wanted(track, bool(os.environ.get("MLFLOW_TRACKING_URI")) or noted_run(folder) is not None)


@contextmanager
def tracking(
    folder: Path, copy: Callable[[Store, bool], None], track: bool, interval: float, at_stop: float = AT_STOP
) -> Iterator[Tracker]:
    """If `track`: call `copy(store, last)` when the block begins, every `interval` seconds while it runs, and once more
    after it. Ctrl-C waits `at_stop` seconds for that."""
    tracker = MlflowTracker(folder, copy, interval) if track else Tracker()
    left: float | None = None
    try:
        yield tracker
    except (KeyboardInterrupt, asyncio.CancelledError):
        left = at_stop
        raise
    finally:
        tracker.finish(left)
