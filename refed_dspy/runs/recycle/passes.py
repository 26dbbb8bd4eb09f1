"""The teacher's passes over the rows: both on one row after the other, or, to choose in between, each over all rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import dspy

from refed_dspy.concurrency import run_blocking
from refed_dspy.errors import CapReached, InputError, RunStopped, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.metrics.figures import scoring
from refed_dspy.metrics.perplexity import Scorer
from refed_dspy.programs.asking import Question, answered_by
from refed_dspy.programs.reflection import Improved, Recycled, Reflected, ReflectionTuning
from refed_dspy.records import DataRow
from refed_dspy.runs.recycle.select import Selected, choose, select
from refed_dspy.teachers.caps import caps_left, lasting_caps
from refed_dspy.teachers.recorded import Progress, keys, remembered
from refed_dspy.teachers.row_jobs import RowJob, for_each_row, row_job

T = TypeVar("T")
Work = Callable[[DataRow], Awaitable[T]]


@dataclass(frozen=True)
class Passed:
    """What the passes made, by row number. `selected`: None where there was no choice."""

    made: Mapping[int, Recycled] = field(default_factory=dict)
    selected: Mapping[int, Selected] | None = None
    stopped: str = ""
    """The cap that ended it early, or nothing."""
    halfway: int = 0
    """Rows with the first pass that are not done."""


class Passes:
    """Pays for passes over rows, in the folder of `job`. One object is one start of the work."""

    def __init__(self, program: ReflectionTuning, folder: Path, job: RowJob, watch: Callable[[Progress], None] | None):
        self.program, self.folder, self.job, self.watch = program, folder, job, watch
        self._answered = False

    def pay(self, rows: Sequence[DataRow], work: Work[T], done: dict[int, T], unit: str = "rows") -> str:
        """`work` on each row; what it gives goes into `done`, by row number. `unit`: what is counted, for people.

        Returns the cap that ended it early, or nothing. Raises as `at_work`, but RunStopped for an InputError once an
        earlier pass of this start was paid for.
        """
        try:
            return run_blocking(self._pay(rows, work, done, unit))
        except InputError as error:
            if not self._answered:
                raise
            told = "" if isinstance(error, TeacherRefused) else f"; {self.job.again}"
            raise RunStopped(f"{error}{told}") from error

    async def _pay(self, rows: Sequence[DataRow], work: Work[T], done: dict[int, T], unit: str) -> str:
        async with row_job(self.folder, self.job, self.watch) as (session, allowance):
            session.progress.unit = unit

            async def one(row: DataRow) -> None:
                done[row.number] = await work(row)
                session.progress.kept += 1

            await for_each_row(session, rows, one, self.job.models["teacher"].concurrency, allowance.grace)
        self._answered = self._answered or session.first.answered
        return session.reached.cap if session.reached else ""

    def recall(self, rows: Sequence[DataRow], work: Work[T], done: dict[int, T]) -> None:
        """As `pay`, on the rows whose answers are all in the ledger. Nobody is asked."""
        run_blocking(self._recall(rows, work, done))

    async def _recall(self, rows: Sequence[DataRow], work: Work[T], done: dict[int, T]) -> None:
        key = keys(self.job.models["teacher"])
        with Ledger.read(self.folder) as ledger:

            async def known(question: Question) -> dspy.Prediction:
                if (answer := remembered(ledger, question, key(question))) is None:
                    raise _NotPaidFor
                return answer

            with answered_by(known):
                for row in rows:
                    try:
                        done[row.number] = await work(row)
                    except _NotPaidFor:
                        continue

    def settled(self, stage: str) -> set[int]:
        """Rows that `stage` was settled for at some time, be it of another text than now."""
        of_stage = (
            "SELECT item FROM answers WHERE stage=:stage UNION SELECT item FROM failures WHERE stage=:stage AND final"
        )
        with Ledger.read(self.folder) as ledger:
            return {int(item) for (item,) in ledger.db.execute(of_stage, {"stage": stage})}

    async def _minutes_left(self) -> None:
        """Raises CapReached where another pass would end before it began."""
        with Ledger.read(self.folder) as ledger:
            allowance = caps_left(ledger, self.job.models, lasting_caps(ledger, self.job.limits))
        async with allowance.minutes():
            pass

    def out_of_time(self) -> str:
        """The cap's name, or nothing."""
        try:
            run_blocking(self._minutes_left())
        except CapReached:
            return "max_minutes"
        return ""


class _NotPaidFor(Exception):
    """The ledger has no answer to a question."""


def row_by_row(rows: Sequence[DataRow], passes: Passes, made: dict[int, Recycled]) -> Passed:
    """Both passes on each row. Whatever ends it, what is done is in `made`."""

    def recycle(row: DataRow) -> Awaitable[Recycled]:
        return passes.program.recycle(row.instruction, row.response, str(row.number))

    return Passed(made, stopped=passes.pay(rows, recycle, made))


def selectively(rows: Sequence[DataRow], passes: Passes, scorer: Scorer) -> Passed:
    """The first pass on all rows; the choice; the second on the pairs that were chosen; the choice.

    A cap in the first pass leaves the rows that earlier starts brought to their end: only they are scored.
    Raises RunStopped where the scorer fails.
    """

    def reflect(row: DataRow) -> Awaitable[Reflected]:
        return passes.program.reflect(row.instruction, row.response, str(row.number))

    def improve(row: DataRow) -> Awaitable[Improved]:
        return passes.program.improve(*chosen[row.number].pair, str(row.number))

    reflected: dict[int, Reflected] = {}
    improved: dict[int, Improved] = {}
    stopped = passes.pay(rows, reflect, reflected, "instructions") or passes.out_of_time()
    left = [row for row in rows if row.number in reflected]
    if stopped:
        settled = passes.settled(passes.program.stage_names[1])
        left = [row for row in left if row.number in settled]
    with scoring(passes.job.again):
        chosen = choose(left, reflected, scorer)
    if stopped:
        passes.recall(left, improve, improved)
    else:
        stopped = passes.pay(left, improve, improved, "responses")
    with scoring(passes.job.again):
        made, selected = select(chosen, improved, scorer)
    return Passed(made, selected, stopped, len(reflected) - len(made))
