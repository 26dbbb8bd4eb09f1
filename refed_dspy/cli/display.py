"""What a person sees of a run: a live line on a terminal, plain lines anywhere else. Written to stderr."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, Generic, Self, TypeVar

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from refed_dspy.cli.stopping import at_work, lines_printed_by
from refed_dspy.optimizers.progress import CompileProgress
from refed_dspy.pace import time_left
from refed_dspy.records import dollars
from refed_dspy.teachers.recorded import Progress

PLAIN_EVERY = 10.0
"""Seconds between plain lines; the first sample is told at once."""
P = TypeVar("P", Progress, CompileProgress)
T = TypeVar("T")


class _Shown(ABC, Generic[P]):
    """Shows the progress that work hands to `watch`."""

    def __init__(self, console: Console | None = None) -> None:
        # The stream itself: what optimizers write to stderr goes elsewhere meanwhile, and this does not.
        self.console = console or Console(file=sys.stderr)
        self.progress: P | None = None

    def watch(self, progress: P) -> None:
        """The work's `on_progress`."""
        self.progress = progress

    @contextmanager
    def showing(self) -> Iterator[Self]:
        """Show progress inside the block: on a terminal one picture, renewed; anywhere else lines from a thread.
        From here on Ctrl-C ends the work cleanly."""
        at_work()
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
            self._lines(done)

    @abstractmethod
    def _picture(self) -> RenderableType:
        """What stands on a terminal now."""

    @abstractmethod
    def _lines(self, done: Event) -> None:
        """Print lines until `done`."""

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Display(_Shown[Progress]):
    """Shows a run's Progress."""

    def _picture(self) -> Table | Text:
        if self.progress is None:
            return Text("starting the teacher …")
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=self.progress.size, completed=self.progress.kept, width=24), summary(self.progress)
        )
        return row

    def _lines(self, done: Event) -> None:
        last, printed = time.monotonic(), ""
        while not done.wait(0.5):
            progress = self.progress
            first = progress is not None and progress.kept > 0 and not printed
            if progress is not None and (first or time.monotonic() - last >= PLAIN_EVERY):
                last = time.monotonic()
                line = summary(progress)
                if line != printed:
                    self._say(line)
                    printed = line


class CompileDisplay(_Shown[CompileProgress]):
    """Shows a compile's CompileProgress: one line, renewed on a terminal, else one for each phase."""

    def _picture(self) -> Text:
        return Text(compile_summary(self.progress) if self.progress is not None else "starting the models …")

    def _lines(self, done: Event) -> None:
        phase = ""
        while not done.wait(0.5):
            if self.progress is not None and self.progress.phase != phase:
                phase = self.progress.phase
                self._say(compile_summary(self.progress))


def shown(work: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """What `work` returns. Its progress is shown meanwhile."""
    with Display().showing() as display:
        return work(*arguments, **keywords, on_progress=display.watch)


def compile_summary(progress: CompileProgress) -> str:
    """One line: what is being done, evaluations, candidates, the best score, dollars."""
    expected = f" of about {progress.expected}" if progress.expected else ""
    phrases = [progress.phase, f"{progress.evaluations}{expected} evaluations"]
    if progress.candidates:
        phrases.append(f"{progress.candidates} candidates")
    if progress.best is not None and progress.baseline is not None:
        phrases.append(f"best {progress.best:.2f} (uncompiled {progress.baseline:.2f})")
    return " · ".join([*phrases, f"{progress.calls} calls", dollars(progress.cost)])


def summary(progress: Progress) -> str:
    """One line: samples, calls in flight, tokens, dollars, failures, time left."""
    phrases = [
        f"{progress.kept}/{progress.size} {progress.unit}",
        f"{progress.in_flight} in flight",
        f"{progress.calls} calls",
        f"{_short(progress.prompt_tokens)} tokens read, {_short(progress.completion_tokens)} written",
    ]
    if progress.priced or progress.cost:
        phrases.append(dollars(progress.cost) + (" and more at unknown prices" if progress.unpriced else ""))
    if failed := sum(progress.failed.values()):
        phrases.append(f"{failed} failed")
    if progress.dropped:
        phrases.append(f"{progress.dropped} dropped")
    if progress.kept < progress.size:
        left = progress.seconds_left()
        phrases.append("time left: …" if left is None else time_left(left))
    return " · ".join(phrases)


def _short(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1_000:.0f}k" if count < 10_000_000 else f"{count / 1e6:.1f}M"
