"""The door of all paid work: a folder whose lock and ledger are held from before the first call until all is written.

    with job(folder, work, Watch(on_progress, progress), outputs, inputs) as at:
        at.ask(rows, judge)  # in here the models answer, under the caps
        write(…)

How it ended is written as the block ends: `killed` until then, since a killed process can write nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from refed_dspy.concurrency import run_blocking
from refed_dspy.errors import ExportError, InputError, RunDirError, RunStopped, TeacherRefused
from refed_dspy.files import check_outputs, path_of
from refed_dspy.jobs.session import Session
from refed_dspy.jobs.work import Start, Work, budget_caps, check_caps
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start
from refed_dspy.ledger.states import CAPPED, DONE, KILLED, NO_WORD, SHORT, UNGATHERED, End, write_end
from refed_dspy.records import digest
from refed_dspy.teachers.progress import NOBODY, Progress, Watch

T = TypeVar("T")


class Job:
    """The work in a folder that nobody else may work in meanwhile. Open it with `job`."""

    session: Session
    """Of the last time that its models were asked."""

    def __init__(self, ledger: Ledger, work: Work, watch: Watch[Progress], reused_from: Ledger | None) -> None:
        """Writes the work down. Raises ConfigError, as `check_caps`; then nothing was written."""
        self.ledger, self.folder, self.work = ledger, ledger.path.parent, work
        self.watch, self._reused_from = watch, reused_from
        self.stopped = ""
        """The cap that ended it early, or an empty text."""
        self.short = ""
        """Why it is not done, though no cap ended it; or an empty text."""
        self._size = work.record(ledger, check_caps(ledger, work.models, work.caps).settings)
        write_end(ledger, End(KILLED, NO_WORD))
        self._told = self._paid = False

    def begin(self, **changes: Any) -> Start:
        """One more start, whose time counts from now on. `changes`: fields of the work that are others in this one.
        Raises ConfigError, as `check_caps`."""
        work, ledger = replace(self.work, **changes), self.ledger
        caps_left = check_caps(ledger, work.models, work.caps)
        size = work.record(ledger, caps_left.settings) if changes else self._size
        begin_start(ledger)
        recorder = RunRecorder(ledger, caps_left.caps, caps_left.before, work.calls_each)
        return Start(ledger, work, size, caps_left, recorder, self._reused_from)

    @asynccontextmanager
    async def asking(self, **changes: Any) -> AsyncIterator[Session]:
        """The session of one more start, its models running. At a cap the block ends cleanly, and `stopped` says which.
        Raises as `begin` and `Session.running`."""
        self.session = session = Session(self.begin(**changes))
        self.short = ""
        async with self.watch.following(session.progress), session.running():
            yield session
        self._paid = self._paid or session.answered
        if session.cap_reached is not None:
            self.stopped = self.stopped or session.cap_reached.cap
        if unanswered := len(session.start.recorder.passing):
            self.short = f"{unanswered} questions had no answer; run the same command to ask them again"
        self.ledger.rest()

    def ask(self, items: Iterable[T], work: Callable[[T], Awaitable[None]], **changes: Any) -> None:
        """`work` on every item, as `Session.for_each`, in an event loop of its own. Raises as `asking`."""

        async def asked() -> None:
            async with self.asking(**changes) as session:
                await session.for_each(items, work)

        run_blocking(asked())

    @property
    def end(self) -> End:
        """How it ends, where nothing raises."""
        if self.stopped:
            return End(CAPPED, f"{self.stopped} is reached; raise it and run the same command to continue")
        return End(SHORT, self.short) if self.short else End(DONE)

    def ends(self, end: End) -> None:
        """Write how it ends, whatever comes after it. Raises RunStopped where it cannot be written."""
        write_end(self.ledger, end)
        self._told = True

    def close(self) -> None:
        """Write how it ends, unless that was written."""
        if not self._told:
            write_end(self.ledger, self.end)

    def ended_by(self, error: BaseException) -> BaseException:
        """Write that `error` ends it. Returns what is raised in its place, which says what is kept, too."""
        if not self._told:
            with suppress(RunStopped):  # the block's error is raised; a failed write has the same cause
                write_end(self.ledger, End.by(error))
        if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
            return type(error)(self.work.kept_line(self.ledger))
        if isinstance(error, ExportError) and self.ledger.has_answers():
            return RunStopped(str(error) + "; the answers are kept: the same command pays for none of them again")
        if isinstance(error, InputError) and self._paid:
            hint = "" if isinstance(error, TeacherRefused) else "; " + self.work.resume_hint(self.ledger)
            return RunStopped(str(error) + hint)
        return error


@contextmanager
def job(
    folder: Path,
    work: Work,
    watch: Watch[Progress] = NOBODY,
    outputs: Iterable[str] = (),
    inputs: Iterable[Any] = (),
) -> Iterator[Job]:
    """`work` in `folder`, new there or the same as before; its files there are `outputs`, and `inputs` what it reads.

    How it ended is written as it ends: as the block says (`Job.ends`), by what it raises, else `Job.end`. Where this
    refuses the work, nothing was written.

    Raises:
        RunDirError: the folder holds other work, is in use, or cannot be written; or there is no run to reuse.
        ConfigError: a cap that cannot be kept, or calls that wait in the batch of another model.
        ExportError: as `check_outputs`.
        RunStopped: a later lease of the shard writes it. In place of an InputError of the block, once something was
            paid for, and of an ExportError, once there are answers.
        KeyboardInterrupt, CancelledError: where the block raises one: what is kept, and how to go on.
    """
    check_outputs(folder, outputs, FILE, *inputs)
    if not (folder / FILE).is_file():  # a mistake leaves no folder behind
        budget_caps(work.models, work.caps)
    with ExitStack() as stack:
        reused_from = None if work.reuse is None else stack.enter_context(_to_reuse(work.reuse))
        ledger = stack.enter_context(Ledger.create(folder, work.epoch))
        work.refuse_another(ledger)  # first: the caps and costs of other work mean nothing here
        opened = Job(ledger, work, watch, reused_from)
        try:
            yield opened
        except BaseException as error:
            if (told := opened.ended_by(error)) is error:
                raise
            raise told from None
        opened.close()


def folder_of(out: str | Path | None, home: str, identity: Any) -> Path:
    """`out`, or a folder in `home` that is named after what tells the work from other work."""
    return Path(home) / digest(identity) if out is None else path_of(out, "out")


def _to_reuse(folder: Path) -> Ledger:
    """The ledger of the run in `folder`. Raises RunDirError where there is none, or where it lacks what a cluster's
    workers made."""
    ledger = Ledger.read(folder)
    if ledger.meta(UNGATHERED):
        ledger.close()
        raise RunDirError(f"reuse: {folder}: its shards are not gathered yet; run its own command again first")
    return ledger
