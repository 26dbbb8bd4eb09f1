"""Jobs over the rows of a data set: many rows at once, under caps, with every answer in the ledger of one folder."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from refed_dspy.concurrency import keep_running
from refed_dspy.errors import RunDirError
from refed_dspy.ledger.identity import differences, has_begun, refuse_other_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.caps import CapSettings, CapsLeft, check_caps, lasting_caps
from refed_dspy.teachers.recorded import CallPolicy, Progress
from refed_dspy.teachers.session import Session

T = TypeVar("T")


@dataclass(frozen=True)
class RowJob:
    """A job over rows: its kind (`work`, as the ledger has it), what may not change between its starts, its models."""

    work: str
    identity: Mapping[str, Any]
    models: Mapping[str, Teacher]
    caps: CapSettings
    rows: int
    resume_hint: str
    """What is kept and how to resume, for messages."""
    calls_a_row: float = 2.0
    policy: CallPolicy = field(default_factory=CallPolicy)


def resume_hint(folder: Path) -> str:
    """What is kept and how to resume, for messages about a job in `folder`."""
    return f"what was paid for is kept in {shlex.quote(str(folder))}; the same command goes on from there"


@asynccontextmanager
async def row_job(
    folder: Path, job: RowJob, watch: Callable[[Progress], None] | None = None
) -> AsyncIterator[tuple[Session, CapsLeft]]:
    """The session in `folder`, its models running. At a cap the block ends cleanly; `Session.cap_reached` says which.

    Raises:
        RunDirError: the folder holds other work.
        ConfigError: a cap that cannot be kept.
        TeacherRefused, RunStopped: as `Session.open`.
    """
    with Ledger.create(folder) as ledger:
        refuse_other_work(ledger, job.work)  # first: the caps and costs of other work mean nothing here
        caps = lasting_caps(ledger, job.caps)
        remaining = check_caps(ledger, job.models, caps)
        _begin_or_continue(ledger, job, caps)
        begin_start(ledger)
        progress = Progress(job.rows, cost=remaining.before.cost, unit="rows")
        progress.unpriced = remaining.before.unpriced
        progress.priced = all(model.price is not None for model in job.models.values())
        if watch is not None:
            watch(progress)
        recorder = RunRecorder(ledger, remaining.caps, remaining.before, job.calls_a_row)
        session = Session(ledger, recorder, job.models, progress, job.policy)
        async with session.open(remaining, lambda: job.resume_hint):
            yield session, remaining


async def for_each_row(
    session: Session, items: Iterable[T], work: Callable[[T], Awaitable[None]], slots: int, grace: float
) -> None:
    """`work` on every item, at most `slots` at once.

    First come the items that need no call, since earlier starts paid for them: they are done, whatever ends the rest.
    So `work` may begin twice on an item, and must not keep anything of an item that it does not finish.

    Raises whatever `work` raises first; calls in flight then get `grace` seconds to be committed.
    """
    left = await _needing_calls(session, items, work) if session.ledger.has_answers() else items
    session.progress.kept_at_start = session.progress.kept
    waiting = iter(left)

    def stop() -> None:
        session.recorder.stopping = True

    await keep_running(lambda: map(work, waiting), slots, stop, grace)


async def _needing_calls(session: Session, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> list[T]:
    """Does `work` on every item whose answers are all in the ledger. Returns the items that need a call."""
    unpaid = []
    session.recorder.stopping = True  # a call that would have to be made is cancelled instead
    try:
        for item in items:
            try:
                await work(item)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                unpaid.append(item)
            await asyncio.sleep(0)  # nothing else in here waits, and Ctrl-C must get through
    finally:
        session.recorder.stopping = False
    return unpaid


def _begin_or_continue(ledger: Ledger, job: RowJob, caps: CapSettings) -> None:
    """Write the job into the ledger. Raises RunDirError where another job of this kind is there."""
    stored, identity = ledger.meta("job"), json.loads(json.dumps(dict(job.identity)))  # tuples and keys as stored ones
    if stored is not None and has_begun(ledger) and (changes := differences(stored, identity)):
        raise RunDirError(
            f"{ledger.path.parent}: holds another {job.work}: {'; '.join(changes)}; set these back, or name another "
            "folder"
        )
    ledger.set_meta(work=job.work, job=identity, size=job.rows, **caps)
