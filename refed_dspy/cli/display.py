"""What a person sees of a run: a live line on a terminal, plain lines anywhere else. Written to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Event, Thread
from typing import Any, Self, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from refed_dspy.cli.ending import lines_printed_by
from refed_dspy.teachers.progress import CompileProgress, Progress, picture

PLAIN_EVERY = 10.0
"""Seconds between plain lines; the first sample, and each phase of a compile, is told at once."""
T = TypeVar("T")


class Display:
    """Shows the progress of a run or a compile that work hands to `watch`."""

    def __init__(self, console: Console | None = None) -> None:
        # The stream itself: what optimizers write to stderr goes elsewhere meanwhile, and this does not.
        self.console = console or Console(file=sys.stderr)
        self.progress: Progress | CompileProgress | None = None
        self._outlook = ""

    def watch(self, progress: Progress | CompileProgress) -> None:
        """The work's `on_progress`."""
        self.progress = progress
        if progress.outlook and not self._outlook:
            self._outlook = progress.outlook
            with suppress(OSError):  # nowhere to print: the work goes on without lines
                self._say(self._outlook)

    @contextmanager
    def showing(self) -> Iterator[Self]:
        """Show progress inside the block: on a terminal one picture, renewed; anywhere else lines from a thread."""
        if self.console.is_terminal:
            with (
                Live(get_renderable=self._picture, console=self.console, refresh_per_second=4, transient=True),
                lines_printed_by(self._say),
            ):
                yield self
            return
        done = Event()
        thread = Thread(target=self._told, args=(done,), daemon=True, name="refed-progress")
        with suppress(RuntimeError):  # no thread to be had: the work goes on without lines
            thread.start()
        try:
            yield self
        finally:
            done.set()
            if thread.ident is not None:
                thread.join()

    def _told(self, done: Event) -> None:
        with suppress(OSError):  # nowhere to print, or no file can be opened: the work goes on without lines
            last, printed, phase = time.monotonic(), "", "starting"  # which says nothing yet
            while not done.wait(0.5):
                match self.progress:
                    case Progress() as progress:
                        due = (progress.kept > 0 and not printed) or time.monotonic() - last >= PLAIN_EVERY
                    case CompileProgress() as progress:
                        due, phase = progress.phase != phase, progress.phase
                    case None:
                        continue
                if due and (line := str(progress)) != printed:
                    self._say(line)
                    printed = line
                last = time.monotonic() if due else last

    def _picture(self) -> RenderableType:
        return Text("starting …") if self.progress is None else picture(self.progress)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def shown(work: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """What `work` returns. Its progress is shown meanwhile."""
    with Display().showing() as display:
        return work(*arguments, **keywords, progress=False, on_progress=display.watch)


@contextmanager
def rows_shown(console: Console | None = None) -> Iterator[Callable[[Iterable[T], int | None], Iterable[T]]]:
    """Inside the block, the rows that are passed through what it gives are counted by a bar, of how many there are if
    that is known. Nothing is shown where stderr is no terminal."""
    from rich import progress

    console = console or Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda rows, _: rows
        return
    columns = progress.BarColumn(24), progress.MofNCompleteColumn(), progress.TextColumn("rows")
    with progress.Progress(*columns, progress.TimeRemainingColumn(), console=console, transient=True) as bar:
        say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        with lines_printed_by(say):
            yield lambda rows, total: bar.track(rows, total)
