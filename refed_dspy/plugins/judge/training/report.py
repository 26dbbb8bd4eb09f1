"""What a judge's training is worth: agreement with people before and after it, on what it did not see; whether its
probabilities can be believed (Brier score, expected calibration error), and a picture of that.

A comparison has no order, so its calibration is described from the side that the judge prefers: its confidence (0.5 to
1), and how often people preferred that side, too (a tie is half).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, TypeAlias

from refed_dspy.data.pairs import Pair
from refed_dspy.errors import one_line
from refed_dspy.measures.intervals import (
    Correlation,
    Interval,
    correlations,
    gain_interval,
    is_gain,
    mean_interval,
    share_interval,
)
from refed_dspy.optimizers.agreement import Agreement, agreement, criterion_of, share_of, sign
from refed_dspy.plugins.judge.trained_judge import LENGTH, VERDICT
from refed_dspy.plugins.judge.training.people import GradedAnswer
from refed_dspy.plugins.judge.training.spec import SETS, HeldOut
from refed_dspy.plugins.metrics.drawing import legend, look, new_figure, style
from refed_dspy.programs.judges import Graded, Verdict
from refed_dspy.text import NO_VALUE, counted, format_number, table_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERYTHING = "all held out"
LENGTH_ALONE, TEXTS_ALONE = "length alone", "length and style alone"
"""What is fitted to the same pairs without the judge's verdicts."""
Groups: TypeAlias = frozenset[str]
"""Names of groups of figures (`FIGURES`)."""
CHANCE = 0.5
"""The accuracy of guessing."""
_LONGEST_NAME = 28
_MOST_CRITERIA = 20
"""So many are shown at a terminal."""
BINS = 10
"""Bins of equal width between a confidence of 0.5 and 1."""
CAPTION = (
    "Held-out pairs. A well calibrated judge is on the dashed line; above it, it is too modest, below it, too sure. "
    "Before training it names no confidence: a verdict is taken for 1, a tie for 0.5. A tie of people's is half an "
    "agreement. 95% intervals, by instruction."
)


@dataclass(frozen=True)
class HeldOutPair:
    """A held-out pair, and what the judge said of it before and after training. `chance`: how likely people are to
    prefer A, by the trained judge (a tie is half). `alone`: groups of figures → the preference of what is fitted to
    these alone, above 0 for A."""

    pair: Pair
    before: Verdict
    after: Verdict
    chance: float
    alone: Mapping[Groups, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """Agreement before and after, on some held-out pairs. `gain` is the difference in accuracy, paired, with each
    instruction of the same weight, and its interval is that of proofs (`gain_interval`); None where people decided on
    none of them."""

    name: str
    before: Agreement
    after: Agreement
    gain: Interval | None

    @classmethod
    def of(cls, name: str, judged: Sequence[HeldOutPair], seed: int) -> Change:
        """At least one pair is judged."""
        pairs = [each.pair for each in judged]
        before = agreement(pairs, [each.before for each in judged], seed)[-1]
        after = agreement(pairs, [each.after for each in judged], seed)[-1]
        values, texts = _gains(judged, lambda each: each.before.preference or 0.0)
        if not values:
            return cls(name, before, after, None)
        gain = gain_interval(values, texts)
        # The interval from few instructions may leave the range of differences.
        return cls(name, before, after, replace(gain, low=max(-1.0, gain.low), high=min(1.0, gain.high)))

    def cells(self) -> tuple[str, ...]:
        means = (self.before.accuracy, self.after.accuracy, self.gain)
        return (
            one_line(self.name, _LONGEST_NAME),
            str(self.before.pairs),
            *(NO_VALUE if mean is None else str(mean) for mean in means),
            _two(self.before.pearson, self.after.pearson),
            _two(self.before.spearman, self.after.spearman),
        )


@dataclass(frozen=True)
class Beside:
    """What agrees with people without the judge's verdicts, on all held-out pairs. `gain`: the trained judge's over it,
    in accuracy, with its 95% interval: a guard beside the proof, which a useful judge must not fail by its strictness
    alone."""

    name: str
    accuracy: Interval | None
    gain: Interval | None

    @classmethod
    def of(cls, name: str, groups: Groups, judged: Sequence[HeldOutPair], seed: int) -> Beside:
        gains = _gains(judged, lambda each: each.alone[groups])
        accuracy = share_of(_scored(judged, groups), seed)
        return cls(name, accuracy, None if accuracy is None else mean_interval(*gains, seed=seed))

    def cells(self) -> tuple[str, ...]:
        return (self.name, *(NO_VALUE if mean is None else str(mean) for mean in (self.accuracy, self.gain)))

    @property
    def beaten(self) -> bool:
        """Whether the trained judge agrees better with people."""
        return self.gain is not None and is_gain(self.gain)


@dataclass(frozen=True)
class GradeChange:
    """How grades agree with the mean of people's before and after, on some held-out answers. `error`: the mean absolute
    difference."""

    name: str
    answers: int
    before: Correlation
    after: Correlation
    error_before: Interval
    error_after: Interval

    @classmethod
    def of(cls, name: str, judged: Sequence[tuple[GradedAnswer, Graded, Graded]], seed: int) -> GradeChange:
        """At least one answer was graded, before and after."""
        people, texts = [answer.mean for answer, _, _ in judged], [answer.instruction for answer, _, _ in judged]

        def error(grades: Sequence[float]) -> Interval:
            differences = [abs(grade - mean) for grade, mean in zip(grades, people, strict=True)]
            return mean_interval(differences, texts, seed=seed)

        before = [float(graded.grade or 0) for _, graded, _ in judged]
        after = [graded.expected or 0.0 for _, _, graded in judged]
        return cls(
            name=name,
            answers=len(judged),
            before=correlations(before, people),
            after=correlations(after, people),
            error_before=error(before),
            error_after=error(after),
        )

    def cells(self) -> tuple[str, ...]:
        return (
            one_line(self.name, _LONGEST_NAME),
            str(self.answers),
            str(self.error_before),
            str(self.error_after),
            _two(self.before.pearson, self.after.pearson),
            _two(self.before.spearman, self.after.spearman),
        )


@dataclass(frozen=True)
class TrainingReport:
    """What the training is worth. A criterion's row is of all its held-out pairs, whichever set they are in."""

    sets: Sequence[Change]
    """One for each set that has a pair, and one for all held-out pairs."""
    criteria: Sequence[Change]
    """One for each criterion, where there are several; those of the most pairs first."""
    grades: Sequence[GradeChange]
    calibration_before: Calibration
    """Of verdicts taken for certainties, and ties for one half."""
    calibration_after: Calibration
    beside: Sequence[Beside] = ()
    """Length alone, and what else is fitted without the judge."""
    carried: Mapping[str, float] = field(default_factory=dict)
    """Group of figures → what it gives to the accuracy, on all held-out pairs; together, what is above that of
    guessing."""

    @property
    def gain(self) -> Interval | None:
        """In accuracy, over all held-out pairs."""
        return self.sets[-1].gain

    @property
    def proved(self) -> bool:
        """Whether the judge agrees better with people than before, and than length alone does: the intervals of both
        gains are above zero."""
        return self.gain is not None and is_gain(self.gain) and (self.length is None or self.length.beaten)

    @property
    def length(self) -> Beside | None:
        """Length alone; None where it was not measured."""
        return self._beside(LENGTH_ALONE)

    def _beside(self, name: str) -> Beside | None:
        return next((each for each in self.beside if each.name == name), None)

    @property
    def ruler(self) -> str:
        """That length alone agrees as well with people as the trained judge; empty where it does not, or where length
        tells nothing."""
        length, trained = self.length, self.sets[-1].after.accuracy
        if length is None or length.beaten or length.accuracy is None or length.accuracy.low <= CHANCE:
            return ""
        assert trained is not None and length.gain is not None
        may = "may agree" if length.gain.mean > 0 else "agrees"
        return (
            f"length alone {may} as well with people: in {length.accuracy} of what was held out, the trained judge in "
            f"{trained}"
        )

    @property
    def agrees(self) -> bool:
        """Whether the trained judge is shown to agree better with people than guessing."""
        trained = self.sets[-1].after.accuracy
        return trained is not None and trained.low > CHANCE

    @property
    def idle(self) -> str:
        """That there is an agreement, and the judge's verdict is not shown to add anything to it; else empty."""
        texts = self._beside(TEXTS_ALONE)
        if not self.agrees or texts is None or texts.gain is None or texts.beaten:
            return ""
        adds = "is not shown to add anything" if texts.gain.mean > 0 else "adds nothing"
        first = max(sorted(self.carried.keys() - {VERDICT}), key=lambda name: self.carried[name])
        return f"the judge's verdict {adds}: what agrees with people is mostly {first}"

    def _carried(self) -> list[str]:
        if not self.agrees or not self.carried:
            return []
        most_first = sorted(self.carried.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {share:z.2f}" for name, share in most_first)
        return [f"carried by: {shares}; together, its accuracy above that of guessing"]

    def lines(self) -> list[str]:
        """Tables for a terminal."""
        heading = ("held out", "pairs", "accuracy before", "after", "gain (98.5%)", "Pearson", "Spearman")
        lines = table_lines([heading, *(change.cells() for change in self.sets)])
        if self.criteria:
            shown = self.criteria[:_MOST_CRITERIA]
            lines += ["", *table_lines([("by criterion", *heading[1:]), *(change.cells() for change in shown)])]
            if more := len(self.criteria) - len(shown):
                lines.append(f"(and {counted(more, 'criterion', 'criteria')} with fewer pairs, in the folder's file)")
        if self.grades:
            of_grades = ("grades", "answers", "error before", "after", "Pearson", "Spearman")
            lines += ["", *table_lines([of_grades, *(change.cells() for change in self.grades)])]
        if self.beside:
            heads = ("without the judge", "accuracy", "what the judge adds (95%)")
            lines += ["", *table_lines([heads, *(each.cells() for each in self.beside)])]
        lines += self._carried()
        before, after = self.calibration_before, self.calibration_after
        return [
            *lines,
            "",
            f"Brier score {before.brier} before, {after.brier} after; expected calibration error "
            f"{format_number(before.error)} before, {format_number(after.error)} after",
        ]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types; an infinite bound stays a float."""
        return {**asdict(self), "proved": self.proved, "ruler": self.ruler, "idle": self.idle}


def report_on(
    judged: Sequence[HeldOutPair],
    graded: Sequence[tuple[GradedAnswer, Graded, Graded]],
    held_out: HeldOut,
    seed: int,
) -> TrainingReport:
    """The report on held-out pairs, at least one, and graded answers, each decided before and after."""
    by_set = {name: [each for each in judged if name in held_out.of_pair(each.pair)] for name in SETS}
    by_criterion: dict[str, list[HeldOutPair]] = {}
    for each in judged:
        by_criterion.setdefault(_criterion_name(criterion_of(each.pair).name, held_out), []).append(each)
    grades_by: dict[str, list[tuple[GradedAnswer, Graded, Graded]]] = {}
    for one in graded:
        grades_by.setdefault(_criterion_name(one[0].criterion.name, held_out), []).append(one)
    if len(grades_by) > 1:
        grades_by[EVERYTHING] = list(graded)
    outcomes, clusters = [(each.pair.verdict + 1) / 2 for each in judged], [each.pair.instruction for each in judged]
    certain = [(_sign(each.before) + 1) / 2 for each in judged]
    changes = [Change.of(name, of_set, seed) for name, of_set in by_set.items() if of_set]
    criteria = [Change.of(name, some, seed) for name, some in by_criterion.items()]
    criteria.sort(key=lambda change: -change.before.pairs)
    return TrainingReport(
        (*changes, Change.of(EVERYTHING, judged, seed)),
        criteria if len(criteria) > 1 else [],
        [GradeChange.of(name, some, seed) for name, some in grades_by.items()],
        calibration(certain, outcomes, clusters, seed),
        calibration([each.chance for each in judged], outcomes, clusters, seed),
        [Beside.of(name, groups, judged, seed) for name, groups in _without_judge(judged[0].alone).items()],
        _carried(judged, seed),
    )


def _without_judge(alone: Collection[Groups]) -> dict[str, Groups]:
    """The choices without the judge's verdict that are shown."""
    shown: dict[str, Groups] = {LENGTH_ALONE: frozenset([LENGTH]), TEXTS_ALONE: frozenset().union(*alone) - {VERDICT}}
    return {name: groups for name, groups in shown.items() if groups in alone}


def _carried(judged: Sequence[HeldOutPair], seed: int) -> dict[str, float]:
    """Each group's Shapley value in the accuracy: the mean, over all orders of the groups, of what it adds to those
    before it. So groups that know the same share what it gives. Empty where people decided no pair."""
    accuracy = {groups: share_of(_scored(judged, groups), seed) for groups in judged[0].alone}
    means = {groups: share.mean for groups, share in accuracy.items() if share is not None}
    every = sorted(frozenset[str]().union(*means))
    means[frozenset()] = CHANCE
    carried = dict.fromkeys(every, 0.0)
    for order in (orders := list(permutations(every))):
        for place, name in enumerate(order):
            before = frozenset(order[:place])
            carried[name] += (means[before | {name}] - means[before]) / len(orders)
    return carried


def _scored(judged: Sequence[HeldOutPair], groups: Groups) -> list[tuple[str, float]]:
    """(instruction, 1 where what is fitted to `groups` names people's winner, 0.5 for its tie) where they decided."""
    return [
        (each.pair.instruction, (sign(each.alone[groups]) * each.pair.verdict + 1) / 2)
        for each in judged
        if each.pair.verdict
    ]


def _criterion_name(name: str, held_out: HeldOut) -> str:
    return f"{name} (unseen)" if name in held_out.criteria else name


def _gains(judged: Sequence[HeldOutPair], over: Callable[[HeldOutPair], float]) -> tuple[list[float], list[str]]:
    """Of each pair that people decided: by how much the trained judge is better than what prefers so (1, 0 or -1, and
    halves for ties), and its instruction."""
    decided = [each for each in judged if each.pair.verdict]
    values = [(_sign(each.after) - sign(over(each))) * each.pair.verdict / 2 for each in decided]
    return values, [each.pair.instruction for each in decided]


def _sign(verdict: Verdict) -> int:
    return sign(verdict.preference or 0.0)


def _two(before: float | None, after: float | None) -> str:
    return f"{format_number(before)} to {format_number(after)}"


# --- calibration


@dataclass(frozen=True)
class ReliabilityBin:
    """Comparisons of about one confidence: their mean confidence, and the share in which people agreed."""

    confidence: float
    agreed: Interval


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what people said.

    `brier`: the mean of (probability - outcome) squared; 0.25 for a judge that always says one half, where people know
    no ties. `error`: the mean over comparisons of |confidence - share in which people agreed|, of each bin. Chance
    alone makes it larger the fewer comparisons there are.
    """

    brier: Interval
    error: float
    bins: tuple[ReliabilityBin, ...]


def calibration(
    probabilities: Sequence[float], outcomes: Sequence[float], clusters: Sequence[Hashable], seed: int = 0
) -> Calibration:
    """Of probabilities that the first answer is preferred, and `outcomes`: 1 where people preferred it, 0.5 for a tie,
    0 where they preferred the other. Means are over `clusters`, as those of `mean_interval`.

    Raises ValueError without a comparison, for a probability outside 0 to 1, and for lists of two lengths.
    """
    if not all(0 <= probability <= 1 for probability in probabilities):
        raise ValueError("a probability is not between 0 and 1")
    squares = [(p - outcome) ** 2 for p, outcome in zip(probabilities, outcomes, strict=True)]
    grouped: defaultdict[int, list[tuple[float, float, Hashable]]] = defaultdict(list)
    for p, outcome, cluster in zip(probabilities, outcomes, clusters, strict=True):
        confidence, agreed = (p, outcome) if p >= 0.5 else (1 - p, 1 - outcome)
        grouped[min(BINS - 1, int((confidence - 0.5) * 2 * BINS))].append((confidence, agreed, cluster))
    bins = tuple(_bin(members, seed) for _, members in sorted(grouped.items()))
    distances = [abs(math.fsum(c - a for c, a, _ in members)) for members in grouped.values()]
    return Calibration(share_interval(squares, clusters, seed=seed), math.fsum(distances) / len(squares), bins)


def _bin(members: Sequence[tuple[float, float, Hashable]], seed: int) -> ReliabilityBin:
    agreed = share_interval([agreed for _, agreed, _ in members], [cluster for _, _, cluster in members], seed=seed)
    return ReliabilityBin(math.fsum(confidence for confidence, _, _ in members) / len(members), agreed)


# --- its picture: how often people agree with a judge, by how sure the judge is


def reliability_picture(report: TrainingReport) -> Figure:
    """A marker for each bin of confidence, with its interval, before and after training."""
    curves = {"before": report.calibration_before, "after": report.calibration_after}
    with style():
        figure, axes = new_figure(5.2, CAPTION)
        axes.plot([0.5, 1], [0.5, 1], color="0.45", linewidth=1, linestyle="--", zorder=1)
        for number, curve in enumerate(curves.values()):
            color = look(number)["color"]
            points = [(each.confidence, each.agreed) for each in curve.bins]
            axes.plot([x for x, _ in points], [agreed.mean for _, agreed in points], color=color, alpha=0.5)
            for x, agreed in points:
                if agreed.bounded:
                    axes.vlines(x, agreed.low, agreed.high, color=color, alpha=0.75)
                axes.plot(x, agreed.mean, clip_on=False, **look(number, agreed))
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("how sure the judge is of its verdict")
        axes.set_ylabel("share in which people agree")
        axes.grid(axis="y", color="0.9")
        legend(figure, [_named(name, curve) for name, curve in curves.items()])
    return figure


def _named(name: str, curve: Calibration) -> str:
    return f"{name}: Brier {format_number(curve.brier.mean, 3)}, calibration error {format_number(curve.error, 3)}"
