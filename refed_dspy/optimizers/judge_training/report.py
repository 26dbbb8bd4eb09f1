"""What a judge's training is worth: agreement with people before and after it, on what it did not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from refed_dspy.data.pairs import Pair
from refed_dspy.errors import one_line
from refed_dspy.metrics.calibration import Calibration, calibration
from refed_dspy.metrics.gains import gain_interval, is_gain
from refed_dspy.metrics.intervals import Correlation, Interval, correlations, mean_interval
from refed_dspy.optimizers.agreement import Agreement, agreement, criterion_of
from refed_dspy.optimizers.judge_training.held_out import SETS, HeldOut
from refed_dspy.optimizers.judge_training.people import GradedAnswer
from refed_dspy.programs.judges import Graded, Verdict
from refed_dspy.text import NO_VALUE, counted, format_number, table_lines

EVERYTHING = "all held out"
_LONGEST_NAME = 28
_MOST_CRITERIA = 20
"""So many are shown at a terminal."""


@dataclass(frozen=True)
class Judged:
    """A held-out pair, and what the judge said of it before and after training. `chance`: how likely people are to
    prefer A, by the trained judge (a tie is half)."""

    pair: Pair
    before: Verdict
    after: Verdict
    chance: float


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
    def of(cls, name: str, judged: Sequence[Judged], seed: int) -> Change:
        """At least one pair is judged."""
        pairs = [each.pair for each in judged]
        before = agreement(pairs, [each.before for each in judged], seed)[-1]
        after = agreement(pairs, [each.after for each in judged], seed)[-1]
        gains = [
            (each.pair.instruction, (_sign(each.after) - _sign(each.before)) * each.pair.verdict / 2)
            for each in judged
            if each.pair.verdict
        ]
        if not gains:
            return cls(name, before, after, None)
        gain = gain_interval([g for _, g in gains], [text for text, _ in gains])
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

    @property
    def gain(self) -> Interval | None:
        """In accuracy, over all held-out pairs."""
        return self.sets[-1].gain

    @property
    def proved(self) -> bool:
        """Whether the judge agrees better with people than before: the gain's interval is above zero."""
        return self.gain is not None and is_gain(self.gain)

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
        before, after = self.calibration_before, self.calibration_after
        return [
            *lines,
            "",
            f"Brier score {before.brier} before, {after.brier} after; expected calibration error "
            f"{format_number(before.error)} before, {format_number(after.error)} after",
        ]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types; an infinite bound stays a float."""
        return {**asdict(self), "proved": self.proved}


def report_on(
    judged: Sequence[Judged],
    graded: Sequence[tuple[GradedAnswer, Graded, Graded]],
    held_out: HeldOut,
    seed: int,
) -> TrainingReport:
    """The report on held-out pairs, at least one, and graded answers, each decided before and after."""
    by_set = {name: [each for each in judged if name in held_out.of_pair(each.pair)] for name in SETS}
    by_criterion: dict[str, list[Judged]] = {}
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
    )


def _criterion_name(name: str, held_out: HeldOut) -> str:
    return f"{name} (unseen)" if name in held_out.criteria else name


def _sign(verdict: Verdict) -> int:
    preference = verdict.preference or 0
    return (preference > 0) - (preference < 0)


def _two(before: float | None, after: float | None) -> str:
    return f"{format_number(before)} to {format_number(after)}"
