"""Jobs over the rows of a data set: many rows at once, under caps, with every answer in the ledger of one folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from refed_dspy.concurrency import keep_running
from refed_dspy.ledger.states import CAPPED, DONE, SHORT, STOPPED, End, write_end
from refed_dspy.teachers.progress import NOBODY, Progress, Watch
from refed_dspy.teachers.session import Session
from refed_dspy.teachers.work import Work, begin

T = TypeVar("T")


@asynccontextmanager
async def row_job(folder: Path, work: Work, watch: Watch[Progress] = NOBODY) -> AsyncIterator[Session]:
    """The session in `folder`, its models running. At a cap the block ends cleanly; `Session.cap_reached` says which.

    Raises:
        RunDirError, ConfigError: as `begin`.
        TeacherRefused, RunStopped: as `Session.running`.
    """
    with begin(folder, work) as start:
        session = Session(start)
        async with watch.following(session.progress), session.running():
            yield session
        write_end(session.ledger, _end(session))


def _end(session: Session) -> End:
    if (reached := session.cap_reached) is not None:
        return at_cap(reached.cap)
    if session.start.work.then:
        return End(STOPPED, f"{session.start.work.then}; run the same command to continue")
    if unanswered := len(session.start.recorder.passing):
        return End(SHORT, f"{unanswered} questions had no answer; run the same command to ask them again")
    return End(DONE)


def at_cap(cap: str) -> End:
    """The end of a start that this cap ended."""
    return End(CAPPED, f"{cap} is reached; raise it and run the same command to continue")


async def for_each_row(session: Session, items: Iterable[T], work: Callable[[T], Awaitable[None]], slots: int) -> None:
    """`work` on every item, at most `slots` at once; each that is done counts in `Session.progress`.

    First come the items that need no call, since earlier starts paid for them: they are done, whatever ends the rest.
    So `work` may begin twice on an item, and must not keep anything of an item that it does not finish.

    Raises whatever `work` raises first; calls in flight then get the session's grace to be committed.
    """

    left = await recalled(session, items, work) if session.ledger.has_answers() else items
    waiting = iter(left)

    async def counted(item: T) -> None:
        await work(item)
        session.progress.keep()

    await keep_running(lambda: map(counted, waiting), slots, session.stop, session.grace)


async def recalled(session: Session, items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> list[T]:
    """`work` on every item whose answers are all in the ledger; each counts in `Session.progress`. Returns the items
    that need a call."""
    unpaid = []
    recorder = session.start.recorder
    recorder.stopping = True  # a call that would have to be made is cancelled instead
    try:
        for item in items:
            try:
                await work(item)
                session.progress.keep()
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                unpaid.append(item)
            await asyncio.sleep(0)  # nothing else in here waits, and Ctrl-C must get through
    finally:
        recorder.stopping = False
    del session.progress.moments[:]  # what earlier starts paid for says nothing of the pace
    return unpaid
