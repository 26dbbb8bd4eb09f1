"""From what the judge and people said to a trained judge, and to the report on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from refed_dspy.data.pairs import Pair
from refed_dspy.errors import NothingKept
from refed_dspy.plugins.judge import answer_figures
from refed_dspy.plugins.judge.correction import Correction
from refed_dspy.plugins.judge.trained_judge import (
    GRADES,
    PAIRS,
    Corrections,
    TrainedJudge,
    TrainedRubric,
    preference_by,
)
from refed_dspy.plugins.judge.training.fit import Example, fit_grades, fit_pairs
from refed_dspy.plugins.judge.training.held_out import FEWEST_TRAIN, HeldOut, lacking
from refed_dspy.plugins.judge.training.people import GradedAnswer, shares_of
from refed_dspy.plugins.judge.training.report import LENGTH_ALONE, TEXTS_ALONE, Judged, TrainingReport, report_on
from refed_dspy.programs import PairwiseJudge, Verdict
from refed_dspy.programs.judges import Graded, Judgements
from refed_dspy.programs.saved import load_state, program_state

Nats = Mapping[tuple[str, str], float | None]
"""(what an answer is for, the answer) → the mean negative log-likelihood of its tokens."""


@dataclass(frozen=True)
class Said:
    """The judge's answers: a pair's or an answer's id → what it said."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    before: dict[str, Verdict] = field(default_factory=dict)
    """Those of the judge it began as, of the pairs that it was asked about."""
    grades: dict[str, Graded] = field(default_factory=dict)

    @property
    def judgements(self) -> Judgements:
        """Of pairs, by the judge to train."""
        return Judgements.of(self.verdicts.values())


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

    def figures_of_answer(self, answer: GradedAnswer, graded: Graded) -> dict[str, float]:
        """The judge must have graded it."""
        assert graded.grade is not None
        nats = self.nats.get((answer.context, answer.text))
        return answer_figures.of_grading(graded.grade, answer.text, answer.context, nats)

    def grades(self) -> dict[GradedAnswer, Graded]:
        """The answers that the judge graded, with what it said of them."""
        said = {answer: self.said.grades.get(answer.id) for answer in self.answers}
        return {answer: graded for answer, graded in said.items() if graded is not None and graded.grade is not None}


def learn(lesson: Lesson, prompts: PairwiseJudge) -> TrainedJudge:
    """The judge with `prompts` and corrections fitted to the training pairs and answers.

    Raises NothingKept where the judge decided too few of the training pairs.
    """
    corrections = {PAIRS: _pairs_correction(lesson)}
    if (of_grades := _grades_correction(lesson)) is not None:
        corrections[GRADES] = of_grades
    trained = TrainedJudge(Corrections(corrections))
    own, others = program_state(trained), program_state(prompts)
    load_state(trained, {**own, **{name: others[name] for name, _ in prompts.named_predictors()}}, "training")
    return trained


def _pairs_correction(lesson: Lesson) -> Correction:
    """Raises NothingKept as `learn`."""
    return fit_pairs(_examples(lesson))


def _without_judge(lesson: Lesson) -> dict[str, Correction]:
    """What would do as well without the judge, were it no better than that: corrections fitted to the same pairs by the
    figures of the two texts, and by their length alone."""
    examples = _examples(lesson)
    texts = [name for name in examples[0].figures if name not in answer_figures.VERDICT]
    return {
        name: fit_pairs([replace(each, figures={one: each.figures[one] for one in names}) for each in examples])
        for name, names in ((LENGTH_ALONE, answer_figures.LENGTH), (TEXTS_ALONE, texts))
    }


def _examples(lesson: Lesson) -> list[Example]:
    """The training pairs that the judge decided. Raises NothingKept where there are too few."""
    train, verdicts = lesson.held_out.train(lesson.pairs), lesson.said.verdicts
    examples = [
        Example(lesson.figures_of(pair, verdict), shares_of(pair), pair.instruction)
        for pair in train
        if (verdict := verdicts[pair.id]).in_orders is not None
    ]
    if len(examples) < FEWEST_TRAIN:
        raise NothingKept(
            f"judge: it decided only {len(examples)} of the {len(train)} training pairs, of {FEWEST_TRAIN} that a "
            "training takes; choose another judge, or judge more pairs"
        )
    return examples


def _grades_correction(lesson: Lesson) -> Correction | None:
    """None where nothing can be learned from people's grades."""
    grades = lesson.grades()
    train = lesson.held_out.train_answers([*grades])
    if lacking(train):
        return None
    return fit_grades(
        [Example(lesson.figures_of_answer(each, grades[each]), each.shares, each.instruction) for each in train]
    )


def grades_notes(lesson: Lesson) -> list[str]:
    """Why nothing is learned from the answers that the judge was asked to grade; nothing where something is."""
    asked, graded = (lesson.held_out.train_answers(some) for some in (lesson.answers, [*lesson.grades()]))
    if not asked or not (why := lacking(graded)):
        return []
    return [f"grades: {why}; the judge graded {len(graded)} of {len(asked)}"]


def judged_by(lesson: Lesson, trained: TrainedJudge) -> list[Judged]:
    """The held-out pairs with a verdict before and after."""
    judged, without = [], _without_judge(lesson)
    for pair in lesson.pairs:
        verdict = lesson.said.verdicts[pair.id]
        before = lesson.said.before.get(pair.id, verdict)
        if not lesson.held_out.of_pair(pair) or verdict.preference is None or before.preference is None:
            continue
        after, chance, beside = verdict, 0.5, dict.fromkeys(without, 0.0)
        if verdict.in_orders is not None:  # the two answers differ
            figures = lesson.figures_of(pair, verdict)
            _, tie, a_better = trained.corrections.by_name[PAIRS].shares(figures)
            after, chance = trained.rescored(verdict, figures), min(1.0, a_better + tie / 2)
            beside = {name: preference_by(correction, figures) for name, correction in without.items()}
        judged.append(Judged(pair, before, after, chance, beside))
    return judged


def report_of(lesson: Lesson, trained: TrainedJudge, judged: Sequence[Judged]) -> TrainingReport:
    """Raises NothingKept where the judge decided none of the held-out pairs."""
    if not judged:
        raise NothingKept("judge: it decided none of the held-out pairs; choose another judge")
    return report_on(judged, _graded(lesson, trained.rubric), lesson.held_out, lesson.seed)


def _graded(lesson: Lesson, rubric: object) -> list[tuple[GradedAnswer, Graded, Graded]]:
    """The held-out answers that the judge graded, with the grades before and after."""
    if not isinstance(rubric, TrainedRubric):
        return []
    return [
        (answer, graded, rubric.rescored(graded, lesson.figures_of_answer(answer, graded)))
        for answer, graded in lesson.grades().items()
        if lesson.held_out.of_answer(answer)
    ]
