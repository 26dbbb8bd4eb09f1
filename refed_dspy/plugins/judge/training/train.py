"""Train a judge on people's verdicts, and measure what that is worth. Read this module first in this
package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, cast

from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.data.pairs import Pair
from refed_dspy.errors import CAPS, NothingKept, briefly
from refed_dspy.files import as_path
from refed_dspy.jobs.job import Job, folder_of, job
from refed_dspy.jobs.work import CapSettings, lasting_caps, resume_hint
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.optimizers.compile import compile as tune
from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
from refed_dspy.plugins.judge.trained_judge import log_perplexity_by
from refed_dspy.plugins.judge.training.learn import Lesson, Nats, Said, grades_notes, judged_by, learn, report_of
from refed_dspy.plugins.judge.training.people import GradedAnswer
from refed_dspy.plugins.judge.training.result import OUTPUTS, JudgeTraining, write_training
from refed_dspy.plugins.judge.training.spec import TrainingSpec, prepare
from refed_dspy.plugins.metrics.figures import open_scorer, scoring
from refed_dspy.plugins.metrics.perplexity import Scorer, log_perplexities
from refed_dspy.programs import PairwiseJudge, RubricJudge, Verdict
from refed_dspy.records import PICO, digest
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.text import counted

COMPILE = "compile"
"""The folder inside the training's that holds the compile of the prompts."""
_NOTHING = Spent(0, 0, 0, 0.0)
_SHARES = {"train": (0.25, 24), "validation": (0.125, 12), "test": (0.125, 16)}
"""The share of the training's instructions that each set of the compile gets, and the most. What it sees of them (the
first two) is lost to the correction: of its own demonstrations a judge is too sure."""

if TYPE_CHECKING:
    from refed_dspy.keywords import JudgeTrainingKeywords


@briefly
@with_keywords(JudgeTrainingConfig)
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
        prompts = _compiled_prompts(spec, folder)
        if prompts.stopped:
            end = f"the judge's prompts are not compiled: {prompts.stopped}; run the same command to continue"
            at.stopped, at.short = (prompts.stopped, "") if prompts.stopped in CAPS else ("", end)
            return _made(spec, prompts, at, Said())
        return _train(spec, prompts, at, scorer)


@dataclass(frozen=True)
class CompiledPrompts:
    """The judge with its prompts. `caps`: what is left of the training's; `seen`: digests of the instructions that they
    were compiled on; `used`: what that took; `stopped`: what ended it early."""

    judge: PairwiseJudge
    caps: CapSettings
    changed: bool = False
    seen: frozenset[str] = frozenset()
    used: Spent = _NOTHING
    stopped: str = ""

    def unseen(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those of `pairs` that the prompts were not compiled on: a correction can be fitted and measured with them."""
        return [pair for pair in pairs if digest(pair.instruction) not in self.seen]

    def notes(self) -> list[str]:
        if not self.seen:
            return []
        outcome = "compiled" if self.changed else "compiled, but no candidate was better, so they stay as they were"
        return [f"prompts: {outcome}; the {counted(len(self.seen), 'instruction')} for that are used for nothing else"]


def _train(spec: TrainingSpec, prompts: CompiledPrompts, at: Job, scorer: Scorer | None) -> JudgeTraining:
    """Ask, fit, measure, and write the files."""
    pairs, answers, said = _ask(spec, prompts, at)
    if at.stopped:
        return _made(spec, prompts, at, said)
    with scoring(resume_hint(at.folder)):
        nats = {} if scorer is None else _nats(scorer, spec, pairs, answers)
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


def _ask(spec: TrainingSpec, prompts: CompiledPrompts, at: Job) -> tuple[list[Pair], list[GradedAnswer], Said]:
    """Ask all there is to ask: the judge to train about pairs and answers, and the judge that it began as about the
    pairs that are held out, where its prompts changed. What earlier starts paid for is not asked again. Returns the
    pairs and the answers, too. Raises as `Job.ask`."""
    pairs = prompts.unseen(spec.pairs)
    answers, said, grader = spec.answers(pairs), Said(), RubricJudge()
    again = [pair for pair in pairs if spec.held_out.of_pair(pair)] if prompts.changed else []

    async def compare(judge: PairwiseJudge, into: dict[str, Verdict], pair: Pair) -> None:
        criterion = criterion_of(pair)
        into[pair.id] = await judge.judge(pair.instruction, pair.answer_a, pair.answer_b, criterion, pair.id)

    async def grade(answer: GradedAnswer) -> None:
        said.grades[answer.id] = await grader.judge(answer.text, answer.context, answer.criterion, answer.id)

    questions = [
        *(partial(compare, prompts.judge, said.verdicts, pair) for pair in pairs),
        *(partial(compare, spec.began_as, said.before, pair) for pair in again),
        *(partial(grade, answer) for answer in answers),
    ]
    at.ask(questions, lambda question: question(), size=len(questions), caps=prompts.caps)
    return pairs, answers, said


def _compiled_prompts(spec: TrainingSpec, folder: Path) -> CompiledPrompts:
    """The prompts to train with, compiled in the training's `folder`. Raises as `compile`."""
    settings = spec.settings
    if settings.optimizer is None:
        return CompiledPrompts(spec.began_as, spec.caps)
    train = spec.held_out.train(spec.pairs)
    instructions = len({pair.instruction for pair in train})
    sizes = {name: max(1, min(most, int(share * instructions))) for name, (share, most) in _SHARES.items()}
    tuned = tune(
        spec.began_as,
        train,
        teacher=spec.teacher,
        judge=spec.teacher,
        out=folder / COMPILE,
        progress=False,
        optimizer=settings.optimizer,
        evaluations=settings.evaluations,
        train=sizes["train"],
        validation=sizes["validation"],
        test=sizes["test"],
        seed=settings.seed,
        track=False,
        prove=False,  # the training measures what it is worth, on pairs that neither saw
        max_cost=settings.max_cost,
        max_calls=settings.max_calls,
        max_minutes=settings.max_minutes,
    )
    with Ledger.read(folder / COMPILE) as ledger:
        used, whole = spent(ledger), lasting_caps(ledger, spec.caps)
    left = CapSettings(
        max_cost=_less(whole["max_cost"], used.cost),
        max_calls=cast("int | None", _less(whole["max_calls"], used.calls)),
        max_minutes=_less(whole["max_minutes"], used.seconds / 60),
    )
    stopped = tuned.stopped or _used_up(left, spec.teacher)
    assert isinstance(tuned.program, PairwiseJudge)
    return CompiledPrompts(tuned.program, left, tuned.changed, frozenset(tuned.manifest["seen"]), used, stopped)


def _less(cap: float | None, used: float) -> float | None:
    """What is left of `cap`."""
    return cap if cap is None or math.isinf(cap) else cap - used


def _used_up(left: CapSettings, judge: Teacher) -> str:
    """The name of a cap of which not even one call's worst case is left; "" where all leave one."""
    needed = {"max_cost": (judge.least or 0) / PICO, "max_calls": 1, "max_minutes": 0.01}
    caps = cast("dict[str, float | None]", left)
    return next((name for name, least in needed.items() if (cap := caps[name]) is not None and cap < least), "")


def _nats(scorer: Scorer, spec: TrainingSpec, pairs: Sequence[Pair], answers: Sequence[GradedAnswer]) -> Nats:
    """The log-perplexity of every answer, after what it is for."""
    of_pairs = [(pair.instruction, text) for pair in pairs for text in (pair.answer_a, pair.answer_b)]
    distinct = list(dict.fromkeys([*of_pairs, *((each.context, each.text) for each in answers)]))
    assert spec.settings.scorer is not None
    return dict(zip(distinct, log_perplexities(scorer, distinct, spec.settings.scorer.template), strict=True))


def _made(spec: TrainingSpec, prompts: CompiledPrompts, at: Job, said: Said) -> JudgeTraining:
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
