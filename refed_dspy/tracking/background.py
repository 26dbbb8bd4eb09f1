"""Tracking in a thread beside the work: at intervals, and without ever failing or delaying the work."""

from __future__ import annotations

import logging
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from refed_dspy.programs.mlflow_address import without_secrets
from refed_dspy.tracking.store import NotTracked, Store

log = logging.getLogger("refed_dspy.tracking")
LONGEST_WAIT = 60.0
"""Seconds that the work waits for MLflow at most, at its end and in `update`."""


class Tracker:
    """Copies nothing: where nobody wants to track."""

    def update(self) -> None:
        """Copy what there is by now. Returns when that is done, or has taken too long."""

    def finish(self) -> None:
        """Copy the rest. Never raises: what could not be copied is a warning."""


class MlflowTracker(Tracker):
    """Copies a folder to MLflow every `interval` seconds, and once more at the end."""

    def __init__(
        self, folder: Path, copy: Callable[[Store, bool], None], interval: float, at_once: bool = False
    ) -> None:
        self._copy_at_start = at_once
        self._store, self._copy_to_store, self._interval = Store(folder), copy, interval
        self._ended, self._wake, self._copied = threading.Event(), threading.Event(), threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="refed-tracking", daemon=True)
        self._thread.start()

    def update(self) -> None:
        self._copied.clear()
        self._wake.set()
        self._copied.wait(LONGEST_WAIT)

    def finish(self) -> None:
        self._ended.set()
        self._wake.set()
        self._thread.join(LONGEST_WAIT)
        if self._thread.is_alive():
            self._warn("it does not answer")

    def _work(self) -> None:
        if self._copy_at_start:
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
            self._copy_to_store(self._store, last)
        except NotTracked as error:
            if last or not self._warned:
                self._warn(str(error))
        except Exception:  # a bug here must not end the paid work; the log gets its traceback
            log.exception("tracking failed; the work goes on")

    def _warn(self, reason: str) -> None:
        self._warned = True
        where = os.environ.get("MLFLOW_TRACKING_URI", "its local file")
        log.warning(
            "MLflow at %s was not told (%s); the work goes on; later: refed track %s",
            without_secrets(where), without_secrets(reason), shlex.quote(str(self._store.folder)),
        )  # fmt: skip


def wanted(track: bool | None) -> bool:
    """Whether to track: as `track` says; if it is None, as REFED_TRACK says; else yes."""
    if track is not None:
        return track
    return os.environ.get("REFED_TRACK", "true").strip().lower() not in {"false", "0", "no", "off"}


@contextmanager
def tracking(
    folder: Path, copy: Callable[[Store, bool], None], track: bool | None, interval: float, at_once: bool = False
) -> Iterator[Tracker]:
    """Call `copy(store, last)` every `interval` seconds while the block runs, and once more after it.

    `at_once`: also when it begins.
    """
    tracker = MlflowTracker(folder, copy, interval, at_once) if wanted(track) else Tracker()
    try:
        yield tracker
    finally:
        tracker.finish()
