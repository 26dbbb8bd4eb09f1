"""From what the judge and people said to a trained judge, and to the report on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from refed_dspy.data.pairs import Pair
from refed_dspy.errors import RunStopped
from refed_dspy.optimizers.judge_training.asked import Said
from refed_dspy.optimizers.judge_training.fit import Example, fit_grades, fit_pairs
from refed_dspy.optimizers.judge_training.held_out import FEWEST_TRAIN, HeldOut
from refed_dspy.optimizers.judge_training.people import GradedAnswer, shares_of
from refed_dspy.optimizers.judge_training.report import Judged, TrainingReport, report_on
from refed_dspy.programs import PairwiseJudge, Verdict, answer_figures
from refed_dspy.programs.correction import Correction
from refed_dspy.programs.judges import Graded
from refed_dspy.programs.saved import load_state, program_state
from refed_dspy.programs.trained_judge import GRADES, PAIRS, Corrections, TrainedJudge, TrainedRubric

Nats = Mapping[tuple[str, str], float | None]
"""(what an answer is for, the answer) → the mean negative log-likelihood of its tokens."""


@dataclass(frozen=True)
class Lesson:
    """What there is to learn from: pairs and graded answers, what the judge said of them, and what is held out."""

    pairs: Sequence[Pair]
    answers: Sequence[GradedAnswer]
    said: Said
    held_out: HeldOut
    nats: Nats = field(default_factory=dict)
    seed: int = 0

    def figures_of(self, pair: Pair, verdict: Verdict) -> dict[str, float]:
        """The verdict must be of two different answers."""
        assert verdict.in_orders is not None
        a, b = (self.nats.get((pair.instruction, text)) for text in (pair.answer_a, pair.answer_b))
        return answer_figures.of_pair(verdict.in_orders, pair.answer_a, pair.answer_b, a, b)

    def figures_of_answer(self, answer: GradedAnswer, grade: int) -> dict[str, float]:
        return answer_figures.of_grading(
            grade, answer.text, answer.context, self.nats.get((answer.context, answer.text))
        )

    def grade_of(self, answer: GradedAnswer) -> Graded | None:
        """The judge's grade; None where it gave none."""
        graded = self.said.grades.get(answer.id)
        return graded if graded is not None and graded.grade is not None else None

    def sets_of(self, answer: GradedAnswer) -> tuple[str, ...]:
        """The held-out sets of a graded answer."""
        return self.held_out.sets_of(answer.instruction, answer.criterion.name, [answer.system])


def learn(lesson: Lesson, prompts: PairwiseJudge) -> TrainedJudge:
    """The judge with `prompts` and corrections fitted to the training pairs and answers.

    Raises RunStopped where the judge decided too few of the training pairs.
    """
    corrections = {PAIRS: _pairs_correction(lesson)}
    if (of_grades := _grades_correction(lesson)) is not None:
        corrections[GRADES] = of_grades
    trained = TrainedJudge(Corrections(corrections))
    own, others = program_state(trained), program_state(prompts)
    load_state(trained, {**own, **{name: others[name] for name, _ in prompts.named_predictors()}}, "training")
    return trained


def _pairs_correction(lesson: Lesson) -> Correction:
    train, verdicts = lesson.held_out.train(lesson.pairs), lesson.said.verdicts
    examples = [
        Example(lesson.figures_of(pair, verdict), shares_of(pair), pair.instruction)
        for pair in train
        if (verdict := verdicts[pair.id]).in_orders is not None
    ]
    if len(examples) < FEWEST_TRAIN:
        raise RunStopped(
            f"judge: it decided only {len(examples)} of the {len(train)} training pairs, of {FEWEST_TRAIN} that a "
            "training takes; choose another judge, or judge more pairs"
        )
    return fit_pairs(examples)


def _grades_correction(lesson: Lesson) -> Correction | None:
    """None where people's grades are too few, or all the same."""
    examples = [
        Example(lesson.figures_of_answer(answer, graded.grade), answer.shares, answer.instruction)
        for answer in lesson.answers
        if not lesson.sets_of(answer) and (graded := lesson.grade_of(answer)) is not None and graded.grade is not None
    ]
    levels = {level for example in examples for level, share in enumerate(example.shares) if share}
    return fit_grades(examples) if len(examples) >= FEWEST_TRAIN and len(levels) > 1 else None


def judged_by(lesson: Lesson, trained: TrainedJudge) -> list[Judged]:
    """The held-out pairs with a verdict before and after."""
    judged = []
    for pair in lesson.pairs:
        verdict = lesson.said.verdicts[pair.id]
        before = lesson.said.before.get(pair.id, verdict)
        if not lesson.held_out.of_pair(pair) or verdict.preference is None or before.preference is None:
            continue
        after, chance = verdict, 0.5
        if verdict.in_orders is not None:  # the two answers differ
            figures = lesson.figures_of(pair, verdict)
            _, tie, a_better = trained.corrections.by_name[PAIRS].shares(figures)
            after, chance = trained.rescored(verdict, figures), min(1.0, a_better + tie / 2)
        judged.append(Judged(pair, before, after, chance))
    return judged


def report_of(lesson: Lesson, trained: TrainedJudge, judged: Sequence[Judged]) -> TrainingReport:
    """Raises RunStopped where the judge decided none of the held-out pairs."""
    if not judged:
        raise RunStopped("judge: it decided none of the held-out pairs; choose another judge")
    return report_on(judged, _graded(lesson, trained.rubric), lesson.held_out, lesson.seed)


def _graded(lesson: Lesson, rubric: object) -> list[tuple[GradedAnswer, Graded, Graded]]:
    """The held-out answers that the judge graded, with the grades before and after."""
    if not isinstance(rubric, TrainedRubric):
        return []
    return [
        (answer, graded, rubric.rescored(graded, lesson.figures_of_answer(answer, graded.grade)))
        for answer in lesson.answers
        if lesson.sets_of(answer) and (graded := lesson.grade_of(answer)) is not None and graded.grade is not None
    ]
