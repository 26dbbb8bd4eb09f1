"""Tracking beside the work: in a thread, now and then, and never in its way."""

from __future__ import annotations

import logging
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from refed_dspy.programs.mlflow_address import without_password
from refed_dspy.tracking.store import NotTracked, Store

log = logging.getLogger("refed_dspy.tracking")
LAST = 60.0
"""Seconds that the last word to MLflow may take before the work's end is not kept waiting any longer."""


class Tracker(Protocol):
    """Whoever is told how work goes on."""

    def tell(self) -> None:
        """Tell what there is by now; returns when that is done, or has taken too long."""
        ...

    def finish(self) -> None:
        """Tell the rest. Never raises: what could not be told is a warning."""
        ...


class NoTracker:
    """Tells nobody."""

    def tell(self) -> None:
        pass

    def finish(self) -> None:
        pass


class MlflowTracker:
    """Copies a folder to MLflow every `interval` seconds, and once more at the end."""

    def __init__(
        self, folder: Path, copy: Callable[[Store, bool], None], interval: float, at_once: bool = False
    ) -> None:
        self._at_once = at_once
        self._store, self._copy, self._interval = Store(folder), copy, interval
        self._over, self._now, self._told = threading.Event(), threading.Event(), threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="refed-tracking", daemon=True)
        self._thread.start()

    def tell(self) -> None:
        self._told.clear()
        self._now.set()
        self._told.wait(LAST)

    def finish(self) -> None:
        self._over.set()
        self._now.set()
        self._thread.join(LAST)
        if self._thread.is_alive():
            self._warn("it does not answer")

    def _work(self) -> None:
        if self._at_once:
            self._tell(last=False)
        while not self._over.is_set():
            self._now.wait(self._interval)
            self._now.clear()
            if not self._over.is_set():
                self._tell(last=False)
                self._told.set()
        self._tell(last=True)

    def _tell(self, last: bool) -> None:
        try:
            self._store.connect()
            self._copy(self._store, last)
        except NotTracked as error:
            if last or not self._warned:
                self._warn(str(error))
        except Exception:  # a bug here must not cost what was paid for; its traceback is for the log
            log.exception("tracking failed; the work goes on")

    def _warn(self, why: str) -> None:
        self._warned = True
        where = os.environ.get("MLFLOW_TRACKING_URI", "its local file")
        log.warning(
            "MLflow at %s was not told (%s); the work goes on; later: refed track %s",
            without_password(where), without_password(why), shlex.quote(str(self._store.folder)),
        )  # fmt: skip


def wanted(track: bool | None) -> bool:
    """Whether to track: as `track` says; where it says nothing, as REFED_TRACK does; else yes."""
    if track is not None:
        return track
    return os.environ.get("REFED_TRACK", "true").strip().lower() not in {"false", "0", "no", "off"}


@contextmanager
def tracking(
    folder: Path, copy: Callable[[Store, bool], None], track: bool | None, interval: float, at_once: bool = False
) -> Iterator[Tracker]:
    """Have `copy(store, last)` called every `interval` seconds while the block runs, and once more after it.

    `at_once`: also when it begins.
    """
    tracker: Tracker = MlflowTracker(folder, copy, interval, at_once) if wanted(track) else NoTracker()
    try:
        yield tracker
    finally:
        tracker.finish()
