"""The teacher's two passes over the rows: both on each row in one go, or, to select in between, each over all rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.scorer import Template
from refed_dspy.errors import Reason
from refed_dspy.jobs.job import Job
from refed_dspy.jobs.work import check_caps, resume_hint
from refed_dspy.ledger.history import settled_items
from refed_dspy.plugins.compare.replay import Replay, replaying
from refed_dspy.plugins.metrics.figures import scoring
from refed_dspy.plugins.metrics.perplexity import Difficulty, Scorer, ifd
from refed_dspy.plugins.recycle.program import IMPROVED, Improved, Recycled, Reflected, ReflectionTuning
from refed_dspy.records import DataRow

UNSCORED = Reason("could not be scored")
UNIMPROVED = "response not improved"
T = TypeVar("T")
RowTask = Callable[[DataRow], Awaitable[T]]


@dataclass(frozen=True)
class Chosen:
    """A row's pair after the first pass, the original or the new one: the second pass works on this pair."""

    pair: tuple[str, str]
    reflected: Reflected
    """The first pass's result. If the new pair was not chosen, it is left out and the reason is that of the choice."""
    difficulty: Difficulty
    """Of the pair."""
    original: Difficulty


@dataclass(frozen=True)
class Selected:
    """A row's final figures, and why it is dropped: it teaches nothing (IFD or r-IFD not below 1), or its response was
    not improved."""

    ifd: float | None
    r_ifd: float | None
    original_ifd: float | None
    original_r_ifd: float | None
    template: Template
    """Of these figures. Rows without one were scored by an earlier version, whose figures are others."""
    selection_reason: str = ""

    @property
    def kept(self) -> bool:
        """Whether there is no reason to drop it; a row without a figure is kept."""
        return not self.selection_reason


@dataclass(frozen=True)
class Selection:
    """How selective mode decides. `unimproved`: what becomes of a row that ends without a better response."""

    scorer: Scorer
    template: Template = "vicuna"
    unimproved: Literal["keep", "drop"] = "drop"

    def choose(self, rows: Sequence[DataRow], reflected: Mapping[int, Reflected]) -> dict[int, Chosen]:
        """Row number → its pair for the second pass.

        That is the new pair if its IFD is higher than the original's, which means that it is harder. The original stays
        if a figure cannot be computed or there is no new pair.
        """
        originals = [(row.instruction, row.response) for row in rows]
        new_pairs = {}
        for row in rows:
            new_pair, _ = reflected[row.number]
            if new_pair is not None:
                new_pairs[row.number] = new_pair
        difficulties = ifd(self.scorer, [*originals, *new_pairs.values()], self.template)
        of_originals, of_new = difficulties[: len(originals)], difficulties[len(originals) :]
        new_difficulties = dict(zip(new_pairs, of_new, strict=True))
        return {
            row.number: _chosen(pair, reflected[row.number], original, new_difficulties.get(row.number))
            for row, pair, original in zip(rows, originals, of_originals, strict=True)
        }

    def select(
        self, chosen: Mapping[int, Chosen], improved: Mapping[int, Improved]
    ) -> tuple[dict[int, Recycled], dict[int, Selected]]:
        """What became of each row that is in `improved`, and its figures, by row number.

        The better response is kept if its r-IFD is lower than that of the response before, which means that it says
        more of its instruction. A pair is then dropped unless IFD < 1 and r-IFD < 1 as far as they can be computed, and
        where `unimproved` says so, without a better response.
        """
        better = {
            number: (chosen[number].pair[0], response)
            for number, (response, _) in improved.items()
            if response is not None
        }
        of_better = dict(zip(better, ifd(self.scorer, list(better.values()), self.template), strict=True))
        made: dict[int, Recycled] = {}
        selected: dict[int, Selected] = {}
        for number, result in improved.items():
            choice = chosen[number]
            before = difficulty = choice.difficulty
            if number in better:
                after = of_better[number]
                if _above(before.r_ifd, after.r_ifd):
                    difficulty = after
                else:
                    result = None, _why("r-IFD not lower", after.r_ifd, before.r_ifd)
            made[number] = Recycled.of(choice.pair, choice.reflected, result)
            selected[number] = Selected(
                difficulty.ifd,
                difficulty.r_ifd,
                choice.original.ifd,
                choice.original.r_ifd,
                self.template,
                _too_hard(difficulty) or self._unimproved(made[number]),
            )
        return made, selected

    def _unimproved(self, made: Recycled) -> str:
        return UNIMPROVED if self.unimproved == "drop" and made.response_from != IMPROVED else ""


def _chosen(pair: tuple[str, str], reflected: Reflected, original: Difficulty, new: Difficulty | None) -> Chosen:
    """`original` and `new` are the difficulties of the two pairs; `new` is None if there is no new pair."""
    new_pair, why = reflected
    if new_pair is not None and new is not None:
        if _above(new.ifd, original.ifd):
            return Chosen(new_pair, reflected, new, original)
        why = _why("IFD not higher", new.ifd, original.ifd)
    return Chosen(pair, (None, why), original, original)


def _too_hard(difficulty: Difficulty) -> str:
    """Why the pair teaches nothing; empty if it teaches something."""
    if difficulty.ifd is not None and difficulty.ifd >= 1:
        return "IFD not below 1"
    return "r-IFD not below 1" if difficulty.r_ifd is not None and difficulty.r_ifd >= 1 else ""


def _above(figure: float | None, other: float | None) -> bool:
    return figure is not None and other is not None and figure > other


def _why(what: str, new: float | None, old: float | None) -> Reason:
    return UNSCORED if new is None or old is None else Reason(what, f"{new:.4g}, was {old:.4g}")


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
