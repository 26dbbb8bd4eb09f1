"""The teacher's two passes over the rows: both on each row in one go, or, to select in between, each over all rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from refed_dspy.concurrency import run_blocking
from refed_dspy.errors import InputError, RunStopped, TeacherRefused
from refed_dspy.ledger.connection import locked
from refed_dspy.ledger.history import settled_items
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.compare.replay_lm import Replay, replaying
from refed_dspy.plugins.metrics.figures import scoring
from refed_dspy.plugins.recycle.program import Improved, Recycled, Reflected, ReflectionTuning
from refed_dspy.plugins.recycle.select import Selected, Selection
from refed_dspy.records import DataRow
from refed_dspy.teachers.caps import check_caps, lasting_caps
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.teachers.row_jobs import for_each_row, row_job
from refed_dspy.teachers.work import Work, resume_hint

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
    """Asks the teacher in passes over rows, in one folder. One object is one start of the work for its caller."""

    def __init__(self, program: ReflectionTuning, folder: Path, work: Work, watch: Watch[Progress]):
        self.program, self.folder, self.work, self.watch = program, folder, work, watch
        self._answered = False

    def ask(
        self, rows: Sequence[DataRow], work: RowTask[T], done: dict[int, T], unit: str = "rows", then: str = ""
    ) -> str:
        """Do `work` on each row and put its result into `done`, by row number. `unit`: what is counted, for progress;
        `then`: what is left after this pass.

        Returns the cap that ended it early, or an empty text. Raises as `row_job` does, except that an InputError
        becomes RunStopped once the teacher has answered in an earlier pass of this start.
        """
        try:
            return run_blocking(self._ask(rows, work, done, unit, then))
        except InputError as error:
            if not self._answered:
                raise
            hint = "" if isinstance(error, TeacherRefused) else f"; {resume_hint(self.folder)}"
            raise RunStopped(f"{error}{hint}") from error

    async def _ask(self, rows: Sequence[DataRow], work: RowTask[T], done: dict[int, T], unit: str, then: str) -> str:
        async with row_job(self.folder, replace(self.work, unit=unit, then=then), self.watch) as session:

            async def work_on(row: DataRow) -> None:
                done[row.number] = await work(row)

            await for_each_row(session, rows, work_on, self.work.models["teacher"].concurrency)
        self._answered = self._answered or session.answered
        return session.cap_reached.cap if session.cap_reached else ""

    def recall(self, rows: Sequence[DataRow], work: RowTask[T], done: dict[int, T]) -> None:
        """As `ask`, but only for the rows whose answers are all in the ledger: no call is made."""
        run_blocking(self._recall(rows, work, done))

    async def _recall(self, rows: Sequence[DataRow], work: RowTask[T], done: dict[int, T]) -> None:
        with Ledger.read(self.folder) as ledger:
            replay = Replay(ledger, self.work.models["teacher"])
            with replaying(replay, {}):
                for row in rows:
                    missing, made = replay.missing, await work(row)
                    if replay.missing == missing:
                        done[row.number] = made

    def finished_rows(self, stage: str) -> set[int]:
        """Rows for which `stage` once had an answer or a final failure, even if for another text than now."""
        with Ledger.read(self.folder) as ledger:
            return set(map(int, settled_items(ledger, stage)))

    def out_of_time(self) -> str:
        """The name of the cap on minutes if too little is left of it for another pass, else empty."""
        with Ledger.read(self.folder) as ledger:
            caps_left = check_caps(ledger, self.work.models, lasting_caps(ledger, self.work.caps))
        return "max_minutes" if caps_left.over else ""


def row_by_row(rows: Sequence[DataRow], passes: Passes, made: dict[int, Recycled]) -> PassResults:
    """Both passes on each row. Whatever ends it, the rows that are done are in `made`."""

    def recycle(row: DataRow) -> Awaitable[Recycled]:
        return passes.program.recycle(row.instruction, row.response, str(row.number), row.stands_under)

    return PassResults(made, stopped=passes.ask(rows, recycle, made))


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
    stopped = passes.ask(rows, reflect, reflected, "instructions", "the second pass is to come") or passes.out_of_time()
    left = [row for row in rows if row.number in reflected]
    if stopped:
        finished = passes.finished_rows(passes.program.stage_names[1])
        left = [row for row in left if row.number in finished]
    with locked(passes.folder), scoring(resume_hint(passes.folder)):
        chosen = selection.choose(left, reflected)
    if stopped:
        passes.recall(left, improve, improved)
    else:
        stopped = passes.ask(left, improve, improved, "responses")
    with locked(passes.folder), scoring(resume_hint(passes.folder)):
        made, selected = selection.select(chosen, improved)
    return PassResults(made, selected, stopped, len(reflected) - len(made))
