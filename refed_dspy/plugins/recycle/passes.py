"""The teacher's two passes over the rows: both on each row in one go, or, to select in between, each over all rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from refed_dspy.concurrency import run_blocking
from refed_dspy.errors import InputError, RunStopped, TeacherRefused
from refed_dspy.ledger.history import settled_items
from refed_dspy.plugins.compare.replay_lm import Replay, replaying
from refed_dspy.plugins.metrics.figures import scoring
from refed_dspy.plugins.recycle.program import Improved, Recycled, Reflected, ReflectionTuning
from refed_dspy.plugins.recycle.select import Selected, Selection
from refed_dspy.records import DataRow
from refed_dspy.teachers.caps import check_caps, lasting_caps
from refed_dspy.teachers.job import Job
from refed_dspy.teachers.work import resume_hint

T = TypeVar("T")
RowTask = Callable[[DataRow], Awaitable[T]]


@dataclass(frozen=True)
class PassResults:
    """What the passes made, by row number. `selected`: None if nothing was selected."""

    made: Mapping[int, Recycled] = field(default_factory=dict)
    selected: Mapping[int, Selected] | None = None
    stopped: str = ""
    """The cap that ended it early, or empty."""
    halfway: int = 0
    """Rows that had the first pass but are not done: selective mode begins the second once all have had the first."""


class Passes:
    """Asks the teacher in passes over rows. One object is one start of the work for its caller."""

    def __init__(self, program: ReflectionTuning, at: Job):
        self.program, self.at = program, at
        self._answered = False

    def ask(self, rows: Sequence[DataRow], work: RowTask[T], done: dict[int, T], unit: str = "rows") -> None:
        """Do `work` on each row and put its result into `done`, by row number. `unit`: what is counted, for progress.

        Raises as `Job.ask` does, except that an InputError becomes RunStopped once the teacher has answered in an
        earlier pass of this start.
        """

        async def work_on(row: DataRow) -> None:
            done[row.number] = await work(row)

        try:
            self.at.ask(rows, work_on, unit=unit)
        except InputError as error:
            if not self._answered:
                raise
            hint = "" if isinstance(error, TeacherRefused) else f"; {resume_hint(self.at.folder)}"
            raise RunStopped(f"{error}{hint}") from error
        self._answered = self._answered or self.at.session.answered

    def recall(self, rows: Sequence[DataRow], work: RowTask[T], done: dict[int, T]) -> None:
        """As `ask`, but only for the rows whose answers are all in the ledger: no call is made."""
        run_blocking(self._recall(rows, work, done))

    async def _recall(self, rows: Sequence[DataRow], work: RowTask[T], done: dict[int, T]) -> None:
        replay = Replay(self.at.ledger, self.at.work.models["teacher"])
        with replaying(replay, {}):
            for row in rows:
                missing, made = replay.missing, await work(row)
                if replay.missing == missing:
                    done[row.number] = made

    def finished_rows(self, stage: str) -> set[int]:
        """Rows for which `stage` once had an answer or a final failure, even if for another text than now."""
        return set(map(int, settled_items(self.at.ledger, stage)))

    def note_time(self) -> None:
        """Note that the minutes are used up, where too little is left of them for another pass."""
        work, ledger = self.at.work, self.at.ledger
        if not self.at.stopped and check_caps(ledger, work.models, lasting_caps(ledger, work.caps)).over:
            self.at.stopped = "max_minutes"


def row_by_row(rows: Sequence[DataRow], passes: Passes, made: dict[int, Recycled]) -> PassResults:
    """Both passes on each row. Whatever ends it, the rows that are done are in `made`."""

    def recycle(row: DataRow) -> Awaitable[Recycled]:
        return passes.program.recycle(row.instruction, row.response, str(row.number), row.stands_under)

    passes.ask(rows, recycle, made)
    return PassResults(made, stopped=passes.at.stopped)


def selectively(rows: Sequence[DataRow], passes: Passes, selection: Selection) -> PassResults:
    """The first pass on all rows, then a choice of pairs; the second pass on the chosen pairs, then the selection.

    If a cap ends the first pass, the result has the rows that earlier starts finished, and only those are scored.
    Raises RunStopped if the scorer fails.
    """

    def reflect(row: DataRow) -> Awaitable[Reflected]:
        return passes.program.reflect(row.instruction, row.response, str(row.number), row.stands_under)

    def improve(row: DataRow) -> Awaitable[Improved]:
        return passes.program.improve(*chosen[row.number].pair, str(row.number), row.stands_under)

    reflected: dict[int, Reflected] = {}
    improved: dict[int, Improved] = {}
    passes.ask(rows, reflect, reflected, "instructions")
    passes.note_time()
    left = [row for row in rows if row.number in reflected]
    if passes.at.stopped:
        finished = passes.finished_rows(passes.program.stage_names[1])
        left = [row for row in left if row.number in finished]
    with scoring(resume_hint(passes.at.folder)):
        chosen = selection.choose(left, reflected)
    if passes.at.stopped:
        passes.recall(left, improve, improved)
    else:
        passes.ask(left, improve, improved, "responses")
    with scoring(resume_hint(passes.at.folder)):
        made, selected = selection.select(chosen, improved)
    return PassResults(made, selected, passes.at.stopped, len(reflected) - len(made))
