"""The teacher's two passes over the rows: both on each row in one go, or, to select in between, each over all rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from refed_dspy.concurrency import run_blocking
from refed_dspy.ledger.history import settled_items
from refed_dspy.plugins.compare.replay_lm import Replay, replaying
from refed_dspy.plugins.metrics.figures import scoring
from refed_dspy.plugins.recycle.program import Improved, Recycled, Reflected, ReflectionTuning
from refed_dspy.plugins.recycle.select import Selected, Selection
from refed_dspy.records import DataRow
from refed_dspy.teachers.job import Job
from refed_dspy.teachers.work import check_caps, resume_hint

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


def _ask(at: Job, rows: Sequence[DataRow], work: RowTask[T], done: dict[int, T], unit: str = "rows") -> None:
    """Do `work` on each row and put its result into `done`, by row number. `unit`: what is counted, for progress.
    Raises as `Job.ask`."""

    async def work_on(row: DataRow) -> None:
        done[row.number] = await work(row)

    at.ask(rows, work_on, unit=unit)


async def _recall(at: Job, rows: Sequence[DataRow], work: RowTask[T], done: dict[int, T]) -> None:
    """As `_ask`, but only for the rows whose answers are all in the ledger: no call is made."""
    replay = Replay(at.ledger, at.work.models["teacher"])
    with replaying(replay, {}):
        for row in rows:
            missing, made = replay.missing, await work(row)
            if replay.missing == missing:
                done[row.number] = made


def _out_of_time(at: Job) -> bool:
    """Whether too little is left of the cap on minutes for another pass."""
    return check_caps(at.ledger, at.work.models, at.work.caps).over


def row_by_row(rows: Sequence[DataRow], program: ReflectionTuning, at: Job, made: dict[int, Recycled]) -> PassResults:
    """Both passes on each row. Whatever ends it, the rows that are done are in `made`."""

    def recycle(row: DataRow) -> Awaitable[Recycled]:
        return program.recycle(row.instruction, row.response, str(row.number), row.stands_under)

    _ask(at, rows, recycle, made)
    return PassResults(made, stopped=at.stopped)


def selectively(rows: Sequence[DataRow], program: ReflectionTuning, at: Job, selection: Selection) -> PassResults:
    """The first pass on all rows, then a choice of pairs; the second pass on the chosen pairs, then the selection.

    If a cap ends the first pass, the result has the rows that earlier starts finished, even if for another text than
    now, and only those are scored. Raises RunStopped if the scorer fails.
    """

    def reflect(row: DataRow) -> Awaitable[Reflected]:
        return program.reflect(row.instruction, row.response, str(row.number), row.stands_under)

    def improve(row: DataRow) -> Awaitable[Improved]:
        return program.improve(*chosen[row.number].pair, str(row.number), row.stands_under)

    reflected: dict[int, Reflected] = {}
    improved: dict[int, Improved] = {}
    _ask(at, rows, reflect, reflected, "instructions")
    if not at.stopped and _out_of_time(at):
        at.stopped = "max_minutes"
    left = [row for row in rows if row.number in reflected]
    if at.stopped:
        finished = set(map(int, settled_items(at.ledger, program.stage_names[1])))
        left = [row for row in left if row.number in finished]
    with scoring(resume_hint(at.folder)):
        chosen = selection.choose(left, reflected)
    if at.stopped:
        run_blocking(_recall(at, left, improve, improved))
    else:
        _ask(at, left, improve, improved, "responses")
    with scoring(resume_hint(at.folder)):
        made, selected = selection.select(chosen, improved)
    return PassResults(made, selected, at.stopped, len(reflected) - len(made))
