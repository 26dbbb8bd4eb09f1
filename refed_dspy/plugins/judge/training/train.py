"""Train a judge on people's verdicts, and measure what that is worth. Read this module first in this
package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.data.pairs import Pair
from refed_dspy.errors import NothingKept, briefly
from refed_dspy.files import as_path
from refed_dspy.ledger.spending import spent
from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
from refed_dspy.plugins.judge.trained_judge import log_perplexity_by
from refed_dspy.plugins.judge.training.learn import Lesson, Nats, grades_notes, judged_by, learn, report_of
from refed_dspy.plugins.judge.training.people import Questions, Said, ask
from refed_dspy.plugins.judge.training.result import OUTPUTS, JudgeTraining, write_training
from refed_dspy.plugins.judge.training.spec import TrainingSpec, TunedPrompts, compiled_prompts, prepare
from refed_dspy.plugins.metrics.figures import open_scorer, scoring
from refed_dspy.plugins.metrics.perplexity import Scorer, log_perplexities
from refed_dspy.programs import PairwiseJudge
from refed_dspy.teachers.job import Job, folder_of, job
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.teachers.work import resume_hint


class JudgeTrainingKeywords(TypedDict, total=False):
    """The keys of `JudgeTrainingConfig` that `train_judge` takes besides its own."""

    criteria: Sequence[str] | None
    accept_changed: bool
    optimizer: str | None
    evaluations: int
    held_out: float
    held_out_criteria: Sequence[str]
    held_out_systems: Sequence[str]
    grades: bool
    scorer: ScorerConfig | Mapping[str, Any] | None
    seed: int
    reuse: str | Path | None
    max_cost: float | None
    max_calls: float | None
    max_minutes: float | None


@briefly
@with_keywords(JudgeTrainingConfig, JudgeTrainingKeywords)
def train_judge(
    pairs: str | Path | Sequence[Pair],
    judge: Any,
    *,
    out: str | Path | None = None,
    program: PairwiseJudge | str | Path | None = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[JudgeTrainingKeywords],
) -> JudgeTraining:
    """Train `judge` on people's verdicts: fit a small correction over its answers and figures of the texts, and measure
    its agreement with people before and after on pairs, criteria and systems that the training did not see.

    It may be stopped at any moment. The same call then continues, with all recorded answers. The other keywords are
    settings of `JudgeTrainingConfig`.

    Args:
        pairs: a file or a folder of pages that `load_pairs` reads, or pairs.
        judge: the model; what `synthesize` takes as teacher.
        out: the folder for everything; None: a folder in `refed-judges/`, named after what determines the result.
        program: a compiled judge to start from, its file or MLflow address; None: the package's prompts.
        progress, on_progress: as `synthesize`.

    Raises:
        InputError: an argument cannot be used, or there are too few pairs to hold any out; nothing was paid for.
        RunStopped: the judge failed, or decided too little; answers are kept.
    """
    config = check_config(JudgeTrainingConfig, {**settings, "out": out})
    spec = prepare(pairs, judge, program, config)
    scorer = None if config.scorer is None else open_scorer(config.scorer)  # what fails here costs nothing
    inputs = as_path(pairs), as_path(program)
    folder = folder_of(config.out, "refed-judges", spec.identity())
    with job(folder, spec.work(), Watch(on_progress, progress), OUTPUTS, inputs) as at:
        prompts = compiled_prompts(spec, folder)
        if prompts.stopped:
            end = f"the judge's prompts are not compiled: {prompts.stopped}; run the same command to continue"
            at.stopped, at.short = (prompts.stopped, "") if prompts.stopped.startswith("max_") else ("", end)
            return _made(spec, prompts, at, Said())
        return _train(spec, prompts, at, scorer)


def _train(spec: TrainingSpec, prompts: TunedPrompts, at: Job, scorer: Scorer | None) -> JudgeTraining:
    """Ask, fit, measure, and write the files."""
    pairs = prompts.unseen(spec.pairs)
    again = [pair for pair in pairs if spec.held_out.of_pair(pair)] if prompts.changed else []
    answers = spec.answers(pairs)
    asked = Questions(prompts.judge, pairs, spec.began_as, again, answers)
    said = ask(asked, at, prompts.caps)
    if said.stopped:
        return _made(spec, prompts, at, said)
    with scoring(resume_hint(at.folder)):
        nats = {} if scorer is None else _nats(scorer, spec, pairs, asked)
    lesson = Lesson(pairs, answers, said, spec.held_out, nats, spec.settings.seed)
    if not said.judgements.decided:
        raise NothingKept(said.judgements.none_decided("pairs"))
    trained = learn(lesson, prompts.judge)
    trained.tuned_on = spec.seen()
    judged = judged_by(lesson, trained)
    report = report_of(lesson, trained, judged)
    if scorer is not None and spec.settings.scorer is not None:
        trained.corrections.log_perplexity = log_perplexity_by(scorer, spec.settings.scorer.template)
    made = _made(spec, prompts, at, said).with_judge(trained, report, grades_notes(lesson))
    write_training(made, judged, spec.facts())
    return made


def _nats(scorer: Scorer, spec: TrainingSpec, pairs: Sequence[Pair], asked: Questions) -> Nats:
    """The log-perplexity of every answer, after what it is for."""
    of_pairs = [(pair.instruction, text) for pair in pairs for text in (pair.answer_a, pair.answer_b)]
    distinct = list(dict.fromkeys([*of_pairs, *((each.context, each.text) for each in asked.answers)]))
    assert spec.settings.scorer is not None
    return dict(zip(distinct, log_perplexities(scorer, distinct, spec.settings.scorer.template), strict=True))


def _made(spec: TrainingSpec, prompts: TunedPrompts, at: Job, said: Said) -> JudgeTraining:
    """The outcome so far, without a judge."""
    used, pairs = spent(at.ledger), prompts.unseen(spec.pairs)
    return JudgeTraining(
        folder=at.folder,
        judge=None,
        report=None,
        held_out=spec.held_out,
        judgements=said.judgements,
        train=len(spec.held_out.train(pairs)),
        pairs=len({pair.id for pair in pairs}),
        notes=[*spec.notes(pairs), *prompts.notes()],
        cost=prompts.used.cost + used.cost,
        calls=prompts.used.calls + used.calls,
        stopped=at.stopped or prompts.stopped,
    )
