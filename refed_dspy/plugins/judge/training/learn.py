"""From what the judge and people said to a trained judge, and to the report on it.

Corrections are fitted by ordinal logistic regression, as a binary one over extended rows. An example with levels 1 to K
becomes K - 1 rows, one a threshold: is its level above k? Each has the example's figures and an indicator of its
threshold, whose coefficient is the threshold (Li & Lin 2007, "Ordinal Regression by Extended Binary Classification").
Shares of people are weights of rows. The strength of the L2 penalty has the least log loss in a cross-validation by
instruction; thresholds are hardly penalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from refed_dspy.data.pairs import Pair
from refed_dspy.errors import NothingKept
from refed_dspy.plugins.judge.trained_judge import (
    FARTHEST,
    FIGURES,
    GRADES,
    PAIRS,
    Correction,
    Corrections,
    Term,
    TrainedJudge,
    TrainedRubric,
    grading_figures,
    pair_figures,
    preference_by,
)
from refed_dspy.plugins.judge.training.people import GradedAnswer, Shares, shares_of
from refed_dspy.plugins.judge.training.report import Groups, HeldOutPair, TrainingReport, report_on
from refed_dspy.plugins.judge.training.spec import FEWEST_TRAIN, HeldOut, lacking
from refed_dspy.programs import PairwiseJudge, Verdict
from refed_dspy.programs.judges import Graded, Judgements
from refed_dspy.programs.saved import load_state, program_state

Nats = Mapping[tuple[str, str], float | None]
"""(what an answer is for, the answer) → the mean negative log-likelihood of its tokens."""
Floats = NDArray[np.float64]
STRENGTHS = tuple(float(strength) for strength in np.logspace(-4, 2, 13))
"""What is tried as scikit-learn's C: the smaller, the stronger the penalty."""
FOLDS = 5
_FREE = 10.0
"""The indicators of thresholds have this value, so that the penalty on a threshold is a hundredth of a figure's."""


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
        return pair_figures(verdict.in_orders, pair.answer_a, pair.answer_b, a, b)

    def figures_of_answer(self, answer: GradedAnswer, graded: Graded) -> dict[str, float]:
        """The judge must have graded it."""
        assert graded.grade is not None
        nats = self.nats.get((answer.context, answer.text))
        return grading_figures(graded.grade, answer.text, answer.context, nats)

    def grades(self) -> dict[GradedAnswer, Graded]:
        """The answers that the judge graded, with what it said of them."""
        said = {answer: self.said.grades.get(answer.id) for answer in self.answers}
        return {answer: graded for answer, graded in said.items() if graded is not None and graded.grade is not None}


def learn(lesson: Lesson, prompts: PairwiseJudge) -> TrainedJudge:
    """The judge with `prompts` and corrections fitted to the training pairs and answers.

    Raises NothingKept where the judge decided too few of the training pairs.
    """
    corrections = {PAIRS: fit_pairs(_examples(lesson))}
    if (of_grades := _grades_correction(lesson)) is not None:
        corrections[GRADES] = of_grades
    trained = TrainedJudge(Corrections(corrections))
    own, others = program_state(trained), program_state(prompts)
    load_state(trained, {**own, **{name: others[name] for name, _ in prompts.named_predictors()}}, "training")
    return trained


def _by_groups(lesson: Lesson, full: Correction) -> dict[Groups, Correction]:
    """What each choice among the groups of figures would do by itself: corrections fitted to the same pairs by these
    alone; by all of them, the judge's own correction (`full`)."""
    groups = {name: [one for one in figures if one in full.terms] for name, figures in FIGURES.items()}
    there, examples = [name for name, figures in groups.items() if figures], _examples(lesson)
    fitted = {frozenset(there): full}
    for chosen in chain.from_iterable(combinations(there, size) for size in range(1, len(there))):
        names = [one for name in chosen for one in groups[name]]
        some = [replace(each, figures={one: each.figures[one] for one in names}) for each in examples]
        fitted[frozenset(chosen)] = fit_pairs(some)
    return fitted


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


def judged_by(lesson: Lesson, trained: TrainedJudge) -> list[HeldOutPair]:
    """The held-out pairs with a verdict before and after."""
    of_pairs = trained.corrections.by_name[PAIRS]
    judged, by_groups = [], _by_groups(lesson, of_pairs)
    for pair in lesson.pairs:
        verdict = lesson.said.verdicts[pair.id]
        before = lesson.said.before.get(pair.id, verdict)
        if not lesson.held_out.of_pair(pair) or verdict.preference is None or before.preference is None:
            continue
        after, chance, alone = verdict, 0.5, dict.fromkeys(by_groups, 0.0)
        if verdict.in_orders is not None:  # the two answers differ
            figures = lesson.figures_of(pair, verdict)
            _, tie, a_better = of_pairs.shares(figures)
            after, chance = trained.rescored(verdict, figures), min(1.0, a_better + tie / 2)
            alone = {groups: preference_by(correction, figures) for groups, correction in by_groups.items()}
        judged.append(HeldOutPair(pair, before, after, chance, alone))
    return judged


def report_of(lesson: Lesson, trained: TrainedJudge, judged: Sequence[HeldOutPair]) -> TrainingReport:
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


# --- the fit


@dataclass(frozen=True)
class Example:
    """A judgement to learn from: its figures, the share of people at each level, and its instruction."""

    figures: Mapping[str, float]
    shares: Shares
    instruction: str

    def exchanged(self) -> Example:
        """The same with its two answers exchanged."""
        return Example({name: -value for name, value in self.figures.items()}, self.shares[::-1], self.instruction)


def fit_pairs(examples: Sequence[Example]) -> Correction:
    """The correction of comparisons. Each example counts in both orders, so that neither side can be preferred."""
    fitted = _fit(_Extended.of([*examples, *(example.exchanged() for example in examples)]))
    half = _short((fitted.thresholds[-1] - fitted.thresholds[0]) / 2)
    terms = {name: term.model_copy(update={"mean": 0.0}) for name, term in fitted.terms.items()}
    return Correction(terms=terms, thresholds=(-half, half))


def fit_grades(examples: Sequence[Example]) -> Correction:
    """The correction of single answers."""
    return _fit(_Extended.of(examples))


@dataclass(frozen=True)
class _Extended:
    """The extended rows: values (figures, then indicators), whether the level is above, weights, and clusters."""

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    values: Floats
    above: NDArray[np.bool_]
    weights: Floats
    clusters: NDArray[Any]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        """A figure that is the same in all examples is left out. One that is NaN in some is standardised by the others,
        and 0 there, as in `standardised`."""
        table = np.ma.masked_invalid([list(example.figures.values()) for example in examples])
        varied = np.ma.filled(np.ma.ptp(table, axis=0), 0.0) > 0
        names = tuple(name for name, varies in zip(examples[0].figures, varied, strict=True) if varies)
        known = table[:, varied]
        means, scales = np.ma.getdata(known.mean(axis=0)), np.ma.getdata(known.std(axis=0))
        figures = np.ma.filled(np.clip((known - means) / scales, -FARTHEST, FARTHEST), 0.0)
        extended = list(_extended(figures, np.array([example.shares for example in examples])))
        values, above, weights = (np.concatenate(parts) for parts in zip(*extended, strict=True))
        clusters = np.tile([example.instruction for example in examples], len(extended))
        used = weights > 0
        return cls(
            names=names,
            means=tuple(map(_short, means.tolist())),
            scales=tuple(map(_short, scales.tolist())),
            values=values[used],
            above=above[used],
            weights=weights[used],
            clusters=clusters[used],
        )


def _extended(figures: Floats, shares: Floats) -> Iterator[tuple[Floats, NDArray[np.bool_], Floats]]:
    """For each threshold and each answer to it: the values, the answer, and the share of people who gave it."""
    thresholds = shares.shape[1] - 1
    for threshold in range(thresholds):
        indicators = np.zeros((len(figures), thresholds))
        indicators[:, threshold] = -_FREE
        values = np.hstack([figures, indicators])
        below = shares[:, : threshold + 1].sum(axis=1)
        yield values, np.ones(len(figures), dtype=bool), 1 - below
        yield values, np.zeros(len(figures), dtype=bool), below


def _fit(rows: _Extended) -> Correction:
    coefficients = _regression(rows, slice(None), _best_strength(rows)).coef_[0].tolist()
    of_figures, of_thresholds = coefficients[: len(rows.names)], coefficients[len(rows.names) :]
    terms = {
        name: Term(mean=mean, scale=scale, coefficient=_short(coefficient))
        for name, mean, scale, coefficient in zip(rows.names, rows.means, rows.scales, of_figures, strict=True)
    }
    # In order they are by themselves, but for rounding: those around a level that nobody used are equal.
    ascending = np.maximum.accumulate([_FREE * each for each in of_thresholds]).tolist()
    return Correction(terms=terms, thresholds=tuple(map(_short, ascending)))


def _best_strength(rows: _Extended) -> float:
    """Of STRENGTHS the one with the least log loss on instructions that were left out."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(set(rows.clusters.tolist())))
    splits = [
        (train, test)
        for train, test in GroupKFold(folds).split(rows.values, groups=rows.clusters)
        if len(set(rows.above[train].tolist())) == 2
    ]

    def loss(strength: float) -> float:
        total = 0.0
        for train, test in splits:
            chances = _regression(rows, train, strength).predict_proba(rows.values[test])
            total += log_loss(
                rows.above[test], chances, sample_weight=rows.weights[test], labels=[False, True], normalize=False
            )
        return total

    return min(STRENGTHS, key=loss)


def _regression(rows: _Extended, chosen: Any, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=strength, fit_intercept=False, solver="newton-cholesky")
    return regression.fit(rows.values[chosen], rows.above[chosen], sample_weight=rows.weights[chosen])


def _short(value: float) -> float:
    """Ten digits: the rest is noise, and differs between machines."""
    return float(f"{value:.10g}")
