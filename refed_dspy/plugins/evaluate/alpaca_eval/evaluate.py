"""Run AlpacaEval's official code on a model's outputs, with a judge of ours. A second start pays for nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.data.stored import EVALUATION, PICTURE, TABLE
from refed_dspy.errors import NothingKept, ReferencesError, briefly, one_line
from refed_dspy.files import as_path, check_outputs
from refed_dspy.filters.overlap import Contamination
from refed_dspy.ledger.connection import FILE
from refed_dspy.metrics.intervals import Interval
from refed_dspy.plugins.evaluate.alpaca_eval.annotations import Annotations, official_figures, read_annotations
from refed_dspy.plugins.evaluate.alpaca_eval.outputs import ModelOutputs, check_matching, read_outputs
from refed_dspy.plugins.evaluate.alpaca_eval.result import AtEqualLength, Evaluation, Judged
from refed_dspy.plugins.evaluate.alpaca_eval.workspace import LOG, NAME, Workspace, check_gamed
from refed_dspy.plugins.evaluate.alpaca_eval.write import ANNOTATIONS, LEADERBOARD, write_evaluation
from refed_dspy.plugins.evaluate.environment import ALPACA_EVAL, environment
from refed_dspy.plugins.evaluate.facts import overlap_with
from refed_dspy.plugins.evaluate.judged import at_once, check_judge, check_logprobs, judge_answers, judge_with
from refed_dspy.plugins.evaluate.settings import AlpacaEvalConfig
from refed_dspy.plugins.evaluate.tracked import track_evaluation
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.job import Job, folder_of, job
from refed_dspy.teachers.judge import open_judge_model
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.teachers.work import Work, caps_of

if TYPE_CHECKING:
    from refed_dspy.keywords import AlpacaEvalKeywords

OUTPUTS = (EVALUATION, TABLE, PICTURE, ANNOTATIONS, LEADERBOARD, LOG)


@briefly
@with_keywords(AlpacaEvalConfig)
def alpaca_eval(
    outputs: Any,
    baseline: Any,
    judge: Any,
    out: str | Path | None = None,
    *,
    data: Any = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[AlpacaEvalKeywords],
) -> Evaluation:
    """Have AlpacaEval 2's official code, prompt and parser compare a model's answers with a baseline's.

    Its requests go to `judge` through a server on this machine, so that it has caps, and no recorded
    answer is paid for again. The code runs in an environment of its own, which is made at the first call: 670 MB, in
    one to three minutes.

    Args:
        outputs, baseline: what `read_outputs` takes: AlpacaEval's `model_outputs.json`, or the result or the folder of
            `answer_prompts(…, format="alpaca_eval")`.
        judge: as `synthesize` takes a teacher. It must give log-probabilities.
        out: the folder for figures, table, picture, annotations, and the ledger. None: `refed-evaluations/` and a name
            made from what is judged and by whom. The same call continues in it.
        data: what the model was trained on, as `load_dataset` takes it; the result says what of it overlaps with the
            prompts. None: nothing is said of it.
        progress, on_progress: as `synthesize`.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: it ended early; the judge's answers are kept.
    """
    config = check_config(AlpacaEvalConfig, settings)
    model, against = read_outputs(outputs, "outputs"), read_outputs(baseline, "baseline")
    size = check_matching(model, against)
    if config.gamed is not None:
        check_gamed(config.gamed, model, against)
    opened = open_judge_model(judge)
    check_judge(opened)
    check_logprobs(opened)
    found = overlap_with(data, model.instructions)
    work = _work(config, model, against, opened, size)
    folder = folder_of(out, "refed-evaluations", work.stored_identity)
    check_outputs(folder, OUTPUTS, FILE, as_path(outputs), as_path(baseline))
    installed = environment(ALPACA_EVAL, config.environment)
    workspace = Workspace(folder, installed, model, against, at_once(opened), config.gamed)
    with job(folder, work, Watch(on_progress, progress)) as at:
        made = run_blocking(_Job(workspace, at, opened, found, f"{NAME} {installed.version}").run())
    track_evaluation(folder, config.track)
    return made


def _work(config: AlpacaEvalConfig, outputs: ModelOutputs, baseline: ModelOutputs, judge: Teacher, size: int) -> Work:
    return Work(
        kind="evaluation",
        identity={
            "benchmark": f"{NAME} {ALPACA_EVAL.version}",
            "outputs": outputs.identity,
            "baseline": baseline.identity,
            "judge": judge.identity,
        },
        models={"judge": judge},
        size=size,
        caps=caps_of(config),
        calls_each=1.0,
        unit="comparisons",
    )


@dataclass(frozen=True)
class _Job:
    """One evaluation, in the folder of its `workspace`."""

    workspace: Workspace
    at: Job
    judge: Teacher
    overlap: Contamination | None
    benchmark: str

    async def run(self) -> Evaluation:
        """Run the code and write what came of it. Raises as `judge_with`."""
        folder = self.workspace.folder
        await judge_with(NAME, self.at, self.workspace.program)
        judged = None if self.at.stopped else self._judged()
        given = judge_answers(self.at.ledger)
        made = Evaluation(
            out=folder,
            benchmark=self.benchmark,
            model=self.workspace.outputs.generator,
            baseline=self.workspace.baseline.generator,
            judge=self.judge.model,
            judge_said=given.said,
            date=given.date,
            size=self.at.work.size,
            asked=given.count,
            judged=judged,
            overlap=self.overlap,
            used=given.used,
            simulated=given.simulated,
            stopped=self.at.stopped,
        )
        write_evaluation(made, self.workspace.results)
        self.workspace.clear()
        return made

    def _judged(self) -> Judged:
        """The figures in what the code has written. Raises RunStopped where it wrote something else."""
        results = self.workspace.results
        try:
            (annotations,) = read_annotations(results / ANNOTATIONS)
            figures = official_figures(results / LEADERBOARD)
        except (OSError, KeyError, ValueError, ReferencesError) as error:
            folder = self.workspace.folder
            raise NothingKept(
                f"{NAME}: its results cannot be read: {one_line(error, 150)}; its log: {folder / LOG}"
            ) from None
        return Judged(
            n=int(figures["n_total"]),
            win_rate=figures["win_rate"],
            standard_error=figures["standard_error"],
            interval=annotations.interval,
            length_controlled=_at_equal_length(annotations, figures),
        )


def _at_equal_length(annotations: Annotations, figures: dict[str, float]) -> AtEqualLength:
    """The official figure where the code computed it, with the normal interval of its standard error; else ours."""
    if (official := figures.get("length_controlled_winrate")) is not None:
        half, n = 1.96 * figures["lc_standard_error"], annotations.figures.n
        return AtEqualLength(True, Interval(official, max(0.0, official - half), min(100.0, official + half), n, n))
    if (fitted := annotations.controlled) is None:
        return AtEqualLength(False, None, "the answers' lengths are not known")
    return AtEqualLength(False, fitted.interval, fitted.note)
