"""Paid work over the rows of a data set: in a folder whose ledger remembers every answer, under caps, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from refed_dspy.allowance import Allowance, Limits, allowed, lasting
from refed_dspy.books import RunBooks
from refed_dspy.desk import Desk
from refed_dspy.engine.accounts import open_accounts
from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.runner import land
from refed_dspy.errors import RunDirError
from refed_dspy.identity import differences, refuse_other_work
from refed_dspy.paying import Manner, Progress
from refed_dspy.teachers import Teacher

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What kind of work it is (`Ledger.holds`), what may not change between its starts, and who works on it."""

    work: str
    identity: Mapping[str, Any]
    models: Mapping[str, Teacher]
    limits: Limits
    rows: int
    again: str
    """How it is gone on with, for messages."""
    calls_a_row: float = 2.0
    manner: Manner = field(default_factory=Manner)
    depth: Mapping[str, int] = field(default_factory=dict)


@asynccontextmanager
async def at_work(
    folder: Path, job: Job, watch: Callable[[Progress], None] | None = None
) -> AsyncIterator[tuple[Desk, Allowance]]:
    """The desk in `folder`, its models running. At a cap the block ends in order; `Desk.reached` says which.

    Raises:
        RunDirError: the folder holds other work.
        ConfigError: a cap that cannot be kept.
        TeacherRefused, RunStopped: as `Desk.open`.
    """
    with Ledger.create(folder) as ledger:
        limits = lasting(ledger, job.limits)
        allowance = allowed(ledger, job.models, limits)
        _begin_or_continue(ledger, job, limits)
        open_accounts(ledger)
        progress = Progress(job.rows, cost=allowance.before.cost)
        progress.unpriced = allowance.before.unpriced
        progress.priced = all(model.price is not None for model in job.models.values())
        if watch is not None:
            watch(progress)
        books = RunBooks(ledger, allowance.caps, allowance.before, job.calls_a_row)
        desk = Desk(ledger, books, job.models, progress, job.manner, job.depth)
        async with desk.open(allowance, lambda: job.again):
            yield desk, allowance


async def each(desk: Desk, items: Iterable[T], work: Callable[[T], Awaitable[None]], slots: int, grace: float) -> None:
    """`work` on every item, at most `slots` at once.

    Raises whatever `work` raises first; what is in flight then is given `grace` seconds to be committed.
    """
    running: set[asyncio.Task[None]] = set()
    ended: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
    waiting = iter(items)
    try:
        while True:
            while len(running) < slots and (item := next(waiting, None)) is not None:
                task = asyncio.ensure_future(work(item))
                task.add_done_callback(ended.put_nowait)
                running.add(task)
            if not running:
                return
            done = await ended.get()
            running.discard(done)
            done.result()
    except BaseException:
        desk.books.stopping = True
        await land(running, grace)
        raise


def _begin_or_continue(ledger: Ledger, job: Job, limits: Limits) -> None:
    refuse_other_work(ledger, job.work)
    stored = ledger.meta("job")
    if stored is not None and ledger.has_answers() and (found := differences(stored, dict(job.identity))):
        raise RunDirError(
            f"{ledger.path.parent}: holds another {job.work}: {'; '.join(found)}; set these back, or name another "
            "folder"
        )
    ledger.set_meta(work=job.work, job=dict(job.identity), size=job.rows, **limits)
