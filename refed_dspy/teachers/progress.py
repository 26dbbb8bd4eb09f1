"""How far work has come, and who is told: the function that a caller passes as `on_progress`, and a bar."""

from __future__ import annotations

import asyncio
import sys
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from refed_dspy.concurrency import together
from refed_dspy.errors import ConfigError
from refed_dspy.ledger.spending import Spent
from refed_dspy.ledger.states import DONE
from refed_dspy.ledger.summary import seconds_left, seconds_left_by_calls, time_left
from refed_dspy.records import PICO, dollars
from refed_dspy.text import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

TOLD_EVERY = 0.1
"""Seconds between two calls of `on_progress`, and between two pictures of the bar, at least."""
Draw: TypeAlias = Callable[["RenderableType"], None]
"""Puts a picture in place of the last one."""
_on_terminal = Lock()
"""Held while a bar stands on the terminal: two would write over each other."""


@dataclass
class Progress:
    """How far a run is: counts of this process, but `kept`, `cost` and `unpriced` of all starts."""

    size: int
    kept: int = 0
    in_flight: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    picodollars: int = 0
    unpriced: int = 0
    """Calls whose price is unknown."""
    priced: bool = True
    """Whether the price of every model at work is known."""
    failed: Counter[str] = field(default_factory=Counter)
    """Kind of failure → how many calls."""
    dropped: int = 0
    """Rows that a filter dropped."""
    outlook: str = ""
    """What it will take, told before the first call; empty where nothing is left to do."""
    calls_expected: int = 0
    """About how many calls that is; 0: unknown."""
    since: float = 0.0
    """When this process asked first (`time.monotonic`)."""
    unit: str = "samples"
    """What is counted, for people."""
    moments: array[float] = field(default_factory=lambda: array("d"), repr=False)
    """When each sample of this process was kept."""

    def ask(self) -> None:
        """Another call is in flight."""
        self.in_flight += 1
        self.since = self.since or time.monotonic()

    def keep(self) -> None:
        """Another one is kept."""
        self.kept += 1
        self.moments.append(time.monotonic())

    def seconds_left(self) -> float | None:
        """How long it will still take; None while too little came to tell."""
        now = time.monotonic()
        left = seconds_left(self.moments, now, self.size - self.kept, self.in_flight)
        if left is None and self.since:
            return seconds_left_by_calls(now - self.since, self.calls, self.calls_expected, self.in_flight)
        return left

    @property
    def cost(self) -> float:
        """Dollars, of the calls whose price is known."""
        return self.picodollars / PICO

    @property
    def share(self) -> float:
        """The part that is done, from 0 to 1."""
        return min(1.0, self.kept / self.size) if self.size else 1.0

    def __str__(self) -> str:
        """One line: samples, dollars, failures, time left, calls and tokens; what matters most comes first."""
        phrases = [f"{self.kept}/{self.size} {self.unit}"]
        if self.priced or self.picodollars:
            phrases.append(dollars(self.picodollars) + (" and more at unknown prices" if self.unpriced else ""))
        if failed := sum(self.failed.values()):
            phrases.append(f"{failed} failed")
        if self.dropped:
            phrases.append(f"{self.dropped} dropped")
        if self.kept < self.size:
            left = self.seconds_left()
            phrases.append("time left: …" if left is None else time_left(left))
        phrases += [f"{self.in_flight} in flight", counted(self.calls, "call")]
        if self.prompt_tokens or not self.calls:  # on a cluster they are counted once the shards are gathered
            phrases.append(f"{_short(self.prompt_tokens)} tokens read, {_short(self.completion_tokens)} written")
        return " · ".join(phrases)


@dataclass
class CompileProgress:
    """How far a compile is. `baseline` and `best` are mean scores on the validation set."""

    phase: str = "starting"
    evaluations: int = 0
    expected: int = 0
    """About how many evaluations there will be; 0: not known yet."""
    candidates: int = 0
    baseline: float | None = None
    best: float | None = None
    picodollars: int = 0
    calls: int = 0
    outlook: str = ""
    """What the whole is foreseen to take, in a line."""

    @property
    def cost(self) -> float:
        """Dollars."""
        return self.picodollars / PICO

    def finish(self, state: str, used: Spent) -> None:
        """Nothing is left to do, or no more can be done: it ends in this `state`, and has `used` so much."""
        self.phase, self.picodollars, self.calls = state, used.picodollars, used.calls
        if state == DONE:
            self.expected = self.evaluations

    @property
    def share(self) -> float:
        """The part that is done, from 0 to 1, as far as that is known."""
        return min(1.0, self.evaluations / self.expected) if self.expected else 0.0

    def __str__(self) -> str:
        """One line: what is being done, evaluations, candidates, the best score, dollars."""
        expected = f" of about {self.expected}" if self.expected else ""
        phrases = [self.phase, f"{self.evaluations}{expected} evaluations"]
        if self.candidates:
            phrases.append(counted(self.candidates, "candidate"))
        if self.best is not None and self.baseline is not None:
            phrases.append(f"best {self.best:.2f} (uncompiled {self.baseline:.2f})")
        return " · ".join([*phrases, counted(self.calls, "call"), dollars(self.picodollars)])


P = TypeVar("P", Progress, CompileProgress)


@dataclass(frozen=True)
class Watch(Generic[P]):
    """Who is told how far work is: the caller's `on_progress`, and a bar where a terminal or a notebook can show it.

    Raises ConfigError where `on_progress` is no function.
    """

    on_progress: Callable[[P], None] | None = None
    bar: bool = False

    def __post_init__(self) -> None:
        if self.on_progress is not None and not callable(self.on_progress):
            raise ConfigError(f"on_progress: a {type(self.on_progress).__name__}; pass a function of a Progress")

    @contextmanager
    def telling(self, progress: P) -> Iterator[Teller[P]]:
        """The block calls `tell` of what it is given whenever counts change. They are told before the block, too, and
        after it, however it ends. Raises what `on_progress` raises."""
        with _bar_of(progress) if self.bar else nullcontext() as draw:
            teller = Teller(progress, self.on_progress, draw)
            teller.tell_now()
            try:
                yield teller
            finally:
                if not teller.failed:
                    teller.tell_now()

    @asynccontextmanager
    async def following(self, progress: P) -> AsyncIterator[None]:
        """The same in an event loop, where nobody need call anything. Where `on_progress` raises, the block is
        cancelled and ends with that error."""
        if self == NOBODY:
            yield
            return
        with self.telling(progress) as teller:
            async with together() as group:
                task = group.create_task(teller.keep_telling())
                try:
                    yield
                finally:
                    task.cancel()


NOBODY: Watch[Any] = Watch()


class Teller(Generic[P]):
    """Tells `on_progress` and the bar of one progress, at most every TOLD_EVERY seconds. Any thread may call it."""

    def __init__(self, progress: P, on_progress: Callable[[P], None] | None, draw: Draw | None) -> None:
        self.progress: P = progress
        self._on_progress: Callable[[P], None] | None = on_progress
        self._draw = draw
        self.failed = False
        """Whether `on_progress` raised."""
        self._told_at, self._told = 0.0, ""
        self._lock = Lock()

    def tell(self) -> None:
        """Tell, unless nothing has changed since the last time, or that was just now."""
        if time.monotonic() - self._told_at >= TOLD_EVERY and repr(self.progress) != self._told:
            self.tell_now()

    def tell_now(self) -> None:
        """Tell. Raises what `on_progress` raises."""
        with self._lock:
            self._told_at, self._told = time.monotonic(), repr(self.progress)
            if self._draw is not None:
                with suppress(OSError):  # the terminal is gone: the work goes on without a bar
                    self._draw(picture(self.progress))
            if self._on_progress is not None:
                self.failed = True
                self._on_progress(replace(self.progress))  # as it is now: the next one may be kept beside it
                self.failed = False

    async def keep_telling(self) -> None:
        """Tell of every change, until cancelled."""
        while True:
            await asyncio.sleep(TOLD_EVERY)
            self.tell()


def picture(progress: Progress | CompileProgress) -> RenderableType:
    """A bar and a line, cut where the terminal ends."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1))
    row.add_row(
        ProgressBar(total=1.0, completed=progress.share, width=24),
        Text(str(progress), no_wrap=True, overflow="ellipsis"),
    )
    return row


@contextmanager
def _bar_of(progress: Progress | CompileProgress) -> Iterator[Draw | None]:
    """A bar in a notebook's cell, or on the terminal that stderr is; None where neither can be had, in a log say."""
    if "IPython" not in sys.modules and not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stderr)
    if progress.outlook and (console.is_jupyter or sys.stderr.isatty()):
        console.print(progress.outlook, markup=False, highlight=False, soft_wrap=True)
    if console.is_jupyter:
        from IPython.display import display

        yield display(picture(progress), display_id=True).update
    elif not sys.stderr.isatty() or not _on_terminal.acquire(blocking=False):
        yield None
    else:
        try:
            with Live(picture(progress), console=console, auto_refresh=False) as live:
                yield partial(live.update, refresh=True)
        finally:
            _on_terminal.release()


def _short(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1_000:.0f}k" if count < 10_000_000 else f"{count / 1e6:.1f}M"
