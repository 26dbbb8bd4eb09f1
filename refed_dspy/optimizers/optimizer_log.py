"""What DSPy's optimizers print and log: a file in the compile's folder, since the display beside it says enough."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO, cast

LOG = "optimizer.log"
"""The file's name."""
_LOGGERS = ("dspy", "optuna")
_PRINTING = {"dspy", "gepa", "optuna", "tqdm"}
"""Packages whose output is theirs to keep: that of a metric or a program of the caller's own stays where it was."""

_LEFT = 0.5
"""Seconds for threads that an interrupted optimizer leaves: they end as soon as they ask, and DSPy logs each error."""


class _Sorted:
    """A stream of which what the optimizers' packages write goes to a file, which is made when they first do; without
    a `stream` whatever is written."""

    def __init__(self, path: Path, stream: TextIO | None = None) -> None:
        self._path, self._stream = path, stream

    def write(self, text: str) -> int:
        writer = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        if self._stream is not None and writer not in _PRINTING:
            return self._stream.write(text)
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)  # on a full disk the compile has better to say
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printed_to_file(folder: Path) -> Iterator[None]:
    """In the block, what DSPy's optimizers print, log or draw as bars goes to LOG in `folder`.

    Not where DSPy's logger is set to DEBUG: then somebody wants to see it; nor in a second compile at the same time.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    if loggers[0].isEnabledFor(logging.DEBUG) or isinstance(sys.stderr, _Sorted):
        yield
        return
    file, there = folder / LOG, set(threading.enumerate())
    out, err, logs = (cast(TextIO, _Sorted(file, stream)) for stream in (sys.stdout, sys.stderr, None))
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [logging.StreamHandler(logs)], False
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    except BaseException:
        _let_end(set(threading.enumerate()) - there)
        raise
    finally:
        for logger, (handlers, passed_on) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, passed_on


def _let_end(threads: Iterable[threading.Thread]) -> None:
    until = time.monotonic() + _LEFT
    for thread in threads:
        if not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
