"""Run Arena-Hard's official code on answers, with a judge of ours. A second start pays for nothing twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.data.stored import EVALUATION, PICTURE, TABLE
from refed_dspy.errors import RunStopped, briefly
from refed_dspy.files import after_answers, as_path, check_outputs
from refed_dspy.filters.overlap import Contamination
from refed_dspy.ledger.connection import FILE, locked
from refed_dspy.ledger.states import note_failure
from refed_dspy.plugins.evaluate.arena_hard.arms import Arm, check_styled, load_arms, load_baseline
from refed_dspy.plugins.evaluate.arena_hard.clone import Clone, open_clone
from refed_dspy.plugins.evaluate.arena_hard.leaderboard import Score, read_table
from refed_dspy.plugins.evaluate.arena_hard.result import Judged, Leaderboard
from refed_dspy.plugins.evaluate.arena_hard.workspace import LOG, NAME, TABLE_LOG, Workspace
from refed_dspy.plugins.evaluate.arena_hard.write import JUDGMENTS, write_leaderboard
from refed_dspy.plugins.evaluate.environment import ARENA_HARD, environment
from refed_dspy.plugins.evaluate.facts import overlap_with
from refed_dspy.plugins.evaluate.judged import at_once, check_judge, judge_answers, judge_with
from refed_dspy.plugins.evaluate.program import run_program
from refed_dspy.plugins.evaluate.settings import ArenaHardConfig
from refed_dspy.plugins.evaluate.tracked import track_evaluation
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.caps import caps_of
from refed_dspy.teachers.judge import open_judge_model
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.teachers.work import Work

log = logging.getLogger("refed_dspy.teachers")
OUTPUTS = (EVALUATION, TABLE, PICTURE, JUDGMENTS, LOG, TABLE_LOG)
_STYLE = ("length", "markdown")
"""What the official leaderboards control for."""


class ArenaHardKeywords(TypedDict, total=False):
    """The keys of `ArenaHardConfig` that `arena_hard` takes besides its own."""

    benchmark: str
    category: str | None
    questions: int | None
    style_control: bool
    environment: str | Path | None
    track: bool | None
    max_cost: float | None
    max_calls: float | None
    max_minutes: float | None


@briefly
@with_keywords(ArenaHardConfig, ArenaHardKeywords)
def arena_hard(
    clone: str | Path,
    answers: str | PathLike[str] | Sequence[str | PathLike[str]],
    judge: Any,
    out: str | Path | None = None,
    *,
    data: Any = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[ArenaHardKeywords],
) -> Leaderboard:
    """Have the code of a clone of lmarena/arena-hard-auto compare models' answers with its baseline's, each in both
    orders, and score them as its leaderboards do: with and without style control.

    Its requests go to `judge` through a server on this machine, so that it has caps, and no recorded
    answer is paid for again. The code is copied out of the clone, into which nothing is written, and runs in an
    environment of its own, which is made at the first call.

    The other keywords are settings of `ArenaHardConfig`.

    Args:
        clone: the folder of the clone, which has questions and the baseline's answers.
        answers: a file, or a list of files, of `refed evaluate answers --format arena_hard`. Each is an arm, named after its
            file.
        judge: as `synthesize` takes a teacher.
        out: the folder for scores, table, picture, judgments, and the ledger. None: `refed-evaluations/` and a name
            made from what is judged and by whom. The same call continues in it, also with other arms or more questions.
        data: what the model was trained on, as `load_dataset` takes it; the result says what of it overlaps with the
            questions. None: nothing is said of it.
        progress, on_progress: as `synthesize`.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: it ended early; the judge's answers are kept.
    """
    config = check_config(ArenaHardConfig, settings)
    opened_clone = open_clone(Path(clone), config.benchmark, config.category, config.questions)
    files = [Path(as_path(one)) for one in ([answers] if isinstance(answers, str | PathLike) else answers)]
    arms, baseline = load_arms(opened_clone, files), load_baseline(opened_clone)
    if config.style_control:
        check_styled(arms, baseline)
    opened = open_judge_model(judge)
    check_judge(opened)
    _warn_of_short_judgments(opened, opened_clone)
    prompts = [str(question["prompt"]) for question in opened_clone.questions]
    found = overlap_with(data, prompts)
    work = _work(config, opened_clone, arms, opened)
    folder = Path(out) if out is not None else Path("refed-evaluations") / digest(work.stored_identity)
    check_outputs(folder, OUTPUTS, FILE, *files)
    python = environment(ARENA_HARD, config.environment).python
    workspace = Workspace(folder, opened_clone, python, baseline, arms, at_once(opened))
    job = _Job(workspace, work, opened, found, config.style_control)
    made = run_blocking(job.run(Watch(on_progress, progress)))
    track_evaluation(folder, config.track)
    return made


def _work(config: ArenaHardConfig, clone: Clone, arms: Sequence[Arm], judge: Teacher) -> Work:
    """Arms and questions may change between starts: what the judge has said of them is in the ledger."""
    return Work(
        kind="evaluation",
        identity={
            "benchmark": clone.benchmark,
            "category": clone.category,
            "clone": clone.digest(),
            "judge": judge.identity,
        },
        models={"judge": judge},
        size=2 * len(clone.questions) * len(arms),
        caps=caps_of(config),
        calls_each=1.0,
        unit="games",
    )


def _warn_of_short_judgments(judge: Teacher, clone: Clone) -> None:
    official = clone.settings["max_tokens"]
    if judge.max_tokens < official:
        log.warning(
            "judge: its max_tokens is %d, and Arena-Hard's settings allow %d; longer ones lose their verdict",
            judge.max_tokens,
            official,
        )


@dataclass(frozen=True)
class _Job:
    """One evaluation, in the folder of its `workspace`."""

    workspace: Workspace
    work: Work
    judge: Teacher
    overlap: Contamination | None
    style_control: bool

    async def run(self, watch: Watch[Progress]) -> Leaderboard:
        """Run the code and write what came of it. Raises as `judge_with`."""
        space, folder = self.workspace, self.workspace.folder
        stopped = await judge_with(NAME, folder, self.work, space.judging, watch)
        scored, unstyled = ([], "") if stopped else await self._scored()
        given = judge_answers(folder)
        made = Leaderboard(
            out=folder,
            benchmark=space.clone.benchmark,
            category=space.clone.category,
            baseline=space.clone.baseline,
            judge=self.judge.model,
            judge_said=given.said,
            date=given.date,
            questions=len(space.clone.questions),
            names=[arm.name for arm in space.arms],
            asked=given.count,
            arms=scored,
            unstyled=unstyled,
            overlap=self.overlap,
            used=given.used,
            simulated=given.simulated,
            stopped=stopped,
        )
        with locked(folder), after_answers():
            write_leaderboard(made, {arm.name: space.judged(arm) for arm in space.arms})
            space.clear()
        return made

    async def _scored(self) -> tuple[list[Judged], str]:
        """Every arm's scores, the best first; and why none is at equal style, or an empty text. Raises RunStopped."""
        decided = self.workspace.sort_judgments()
        with_verdicts = [arm for arm, count in decided.items() if count]
        if not with_verdicts:
            why = (
                f"{NAME}: none of the judge's answers has a verdict that its code reads; they are in "
                f"{self.workspace.working}; choose another judge, or raise its max_tokens"
            )
            note_failure(self.workspace.folder, why)
            raise RunStopped(why)
        plain = await self._table(with_verdicts)
        styled, unstyled = await self._styled(with_verdicts)
        scored = [Judged(arm, count, plain.get(arm), styled.get(arm)) for arm, count in decided.items()]
        return sorted(scored, key=lambda each: -each.score.value if each.score else 0.0), unstyled

    async def _styled(self, arms: Sequence[str]) -> tuple[Mapping[str, Score], str]:
        if not self.style_control:
            return {}, "it was left out"
        try:
            return await self._table(arms, *_STYLE), ""
        except RunStopped as error:  # where all answers are alike in one of the features, its code gives up
            return {}, str(error)

    async def _table(self, arms: Sequence[str], *control: str) -> dict[str, Score]:
        """The scores that the code prints. Raises RunStopped."""
        program = self.workspace.table(*control)
        await run_program(program)
        try:
            return read_table(program.log.read_text(encoding="utf-8", errors="replace"), arms)
        except ValueError as error:
            raise RunStopped(f"{NAME}: its table cannot be read: {error}; its log: {program.log}") from None
