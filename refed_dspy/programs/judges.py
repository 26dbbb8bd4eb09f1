"""Judges: DSPy programs like any other, so they can be compiled too, on people's verdicts.

A judge that cannot decide abstains, with a reason; one whose call fails has no say at all. Neither is ever a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Self

import dspy

from refed_dspy.concurrency import all_of
from refed_dspy.errors import NO_REASON, NoConnection, Reason, RowError, one_line
from refed_dspy.programs.asking import about
from refed_dspy.programs.program import AsyncProgram, trace_in_order
from refed_dspy.signatures.judging import PairwiseComparison, RubricGrading

_PREFERENCES = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}


@dataclass(frozen=True)
class Criterion:
    """What a judge judges by: its name and what it means."""

    name: str
    description: str


def _criteria(**descriptions: str) -> Mapping[str, Criterion]:
    return MappingProxyType({name: Criterion(name.replace("_", " "), text) for name, text in descriptions.items()})


OVERALL = Criterion(
    "overall quality",
    "which answer helps the person who gave the instruction more: correct, complete, relevant, clear and in the form "
    "that was asked for",
)
INSTRUCTION_CRITERIA = _criteria(
    clear="one reading only; says what is wanted and in which form, and holds whatever it speaks of",
    answerable="can be answered well from the text alone and from general knowledge, without anything missing",
    like_the_reference_in_complexity="asks for about as much knowledge, reasoning and length as the reference does",
    unlike_its_siblings="differs from the reference and from every sibling in topic, wording and form",
)
"""Criteria for new instructions (the paper asks for practical, diverse ones of the reference's complexity)."""
RESPONSE_CRITERIA = _criteria(
    content_quality="accurate, and as deep as the instruction calls for",
    communication="clear, well structured, fluent, in a fitting tone",
    instruction_alignment="does what is asked within its scope and constraints, and meets needs that are implied",
)
"""Criteria for responses: the paper's three groups of response feedback."""


def criterion_named(name: str, description: str = "") -> Criterion:
    """The criterion of this name: one of this package's own needs no description, and any other is its name where it
    has none."""
    if not description and (own := {**INSTRUCTION_CRITERIA, **RESPONSE_CRITERIA}.get(name.replace(" ", "_"))):
        return own
    return Criterion(name, description or name)


@dataclass(frozen=True)
class Verdict:
    """A pairwise judge's verdict on (answer A, answer B).

    `preference`: the mean over both orders, from 2 (A is much better) to -2; 0 is a tie; None: there is no verdict.
    `consistent`: whether both orders named the same winner, or both a tie; None: there is no verdict.
    `abstained`: why the judge did; `failed`: the failure of one of its two calls, "kind: reason". Else empty.
    `in_orders`: what the judge preferred with A shown first, and with B first, both from 2 (A) to -2; None: not asked,
    or no verdict.
    """

    preference: float | None
    consistent: bool | None
    reasons: tuple[str, ...]
    abstained: str = ""
    failed: Reason = NO_REASON
    in_orders: tuple[int, int] | None = None

    @property
    def win(self) -> float | None:
        """1 where A won, 0.5 for a tie, 0 where B won; None where there is no verdict."""
        if self.preference is None:
            return None
        return 0.5 if self.preference == 0 else float(self.preference > 0)


SAME = Verdict(0, True, ("the two answers are the same",))


@dataclass(frozen=True)
class Graded:
    """A rubric judge's grade, 1 to 5, and its reason; None: it abstained, or its call failed: "kind: reason".

    `expected`: the mean of the grades that people would give, where the judge was trained on theirs.
    """

    criterion: str
    grade: int | None
    reason: str
    failed: Reason = NO_REASON
    expected: float | None = None

    @property
    def share(self) -> float | None:
        """The grade on a scale from 0 to 1."""
        return None if self.grade is None else (self.grade - 1) / 4


@dataclass(frozen=True)
class Judgements:
    """How many questions a judge decided, abstained on, and failed on. `why`: the first reason why it did not decide;
    a failure's, if there is one."""

    decided: int
    abstained: int
    failed: int
    why: str = ""

    @classmethod
    def of(cls, answers: Iterable[Verdict | Graded]) -> Self:
        """Count these."""
        decided, abstentions, failures = 0, [], []
        for answer in answers:
            if (answer.preference if isinstance(answer, Verdict) else answer.grade) is not None:
                decided += 1
            elif answer.failed:
                failures.append(answer.failed)
            else:
                abstentions.append(answer.abstained if isinstance(answer, Verdict) else answer.reason)
        return cls(decided, len(abstentions), len(failures), next(iter([*failures, *abstentions]), ""))

    @property
    def asked(self) -> int:
        return self.decided + self.abstained + self.failed

    def __str__(self) -> str:
        abstentions = f"{self.abstained} abstention{'' if self.abstained == 1 else 's'}"
        return f"{abstentions}, {self.failed} failure{'' if self.failed == 1 else 's'}"

    def warning(self) -> str:
        """That what rests on these rests on fewer than half of them, and why; empty where it does not."""
        if 2 * self.decided >= self.asked:
            return ""
        return self._because(f"based on only {self.decided} of {self.asked} judgements")

    def none_decided(self, rows: str) -> str:
        """The message of a work that ends because its judge decided on none of the `rows` ("pairs", say)."""
        return self._because(f"judge: it decided none of {self.asked} {rows}") + " — choose another judge"

    def _because(self, what: str) -> str:
        return f"{what}: {self}, the first because: {one_line(self.why, 200)}"


def _named(criterion: Criterion) -> dict[str, str]:
    return {"criterion": criterion.name, "description": criterion.description}


class PairwiseJudge(AsyncProgram):
    """Asks which of two answers is better, in both orders. Where the orders disagree the verdict is a tie."""

    rubric: RubricJudge | None = None
    """The judge of single answers that was trained together with this one."""

    @property
    def needs_scorer(self) -> bool:
        """Whether it was trained with perplexities, and needs a model that computes them (`use_scorer`)."""
        return False

    def use_scorer(self, scorer: Any) -> None:
        """Compute perplexities with the model of this `ScorerConfig`. Raises ConfigError."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.compare = dspy.Predict(PairwiseComparison)

    async def judge(
        self, instruction: str, answer_a: str, answer_b: str, criterion: Criterion = OVERALL, item: str = ""
    ) -> Verdict:
        """The verdict; without one where one of the two calls fails.

        Raises TeacherError where the judge cannot be asked at all, NoConnection where it is not reached.
        """
        if answer_a.strip() == answer_b.strip():
            return SAME
        orders = ((answer_a, answer_b), (answer_b, answer_a))
        first, second = await all_of(self._compare(instruction, *order, criterion, item) for order in orders)
        reasons = []
        if not isinstance(first, Reason):
            reasons.append(first.reason)
        if not isinstance(second, Reason):
            reasons.append(f"(asked with A and B exchanged) {second.reason}")
        for failure in (first, second):
            if isinstance(failure, Reason):
                return Verdict(None, None, tuple(reasons), failed=failure)
        if not {first.verdict, second.verdict} <= set(_PREFERENCES):
            return Verdict(None, None, tuple(reasons), "the judge could not tell")
        in_first, in_second = _PREFERENCES[first.verdict], -_PREFERENCES[second.verdict]
        consistent = (in_first > 0) == (in_second > 0) and (in_first < 0) == (in_second < 0)
        preference = (in_first + in_second) / 2 if consistent else 0
        return Verdict(preference, consistent, tuple(reasons), in_orders=(in_first, in_second))

    async def _compare(self, instruction: str, a: str, b: str, criterion: Criterion, item: str) -> Any:
        """The answer for one order, or a Reason why there is none."""
        inputs = {**_named(criterion), "instruction": instruction, "answer_a": a, "answer_b": b}
        item = item or one_line(instruction, 40)
        return await answer_or_failure(self.compare, "pairwise_judge", item, **inputs)

    async def aforward(
        self,
        instruction: str,
        answer_a: str,
        answer_b: str,
        criterion: str = OVERALL.name,
        description: str = OVERALL.description,
    ) -> dspy.Prediction:
        """A prediction with the Verdict's fields."""
        with trace_in_order(self):
            verdict = await self.judge(instruction, answer_a, answer_b, Criterion(criterion, description))
        return dspy.Prediction(**asdict(verdict))


class RubricJudge(AsyncProgram):
    """Grades one text by one named criterion."""

    def __init__(self) -> None:
        super().__init__()
        self.grade = dspy.Predict(RubricGrading)

    async def judge(self, text: str, context: str, criterion: Criterion, item: str = "") -> Graded:
        """The grade; without one where the call fails.

        Raises TeacherError where the judge cannot be asked at all, NoConnection where it is not reached.
        """
        item = item or one_line(text, 40)
        inputs = {**_named(criterion), "context": context, "text": text}
        answer = await answer_or_failure(self.grade, "rubric_judge", item, **inputs)
        if isinstance(answer, Reason):
            return Graded(criterion.name, None, answer, failed=answer)
        return Graded(criterion.name, int(answer.grade) if answer.grade.isdecimal() else None, answer.reason)

    async def aforward(self, text: str, context: str, criterion: str, description: str) -> dspy.Prediction:
        """A prediction with `grade` (1 to 5, or None) and `reason`."""
        graded = await self.judge(text, context, Criterion(criterion, description))
        return dspy.Prediction(grade=graded.grade, reason=graded.reason)


async def answer_or_failure(predictor: dspy.Predict, stage: str, item: str, **inputs: Any) -> Any:
    """The answer of a judge's `predictor`, or a Reason why there is none.

    Raises TeacherError where the judge cannot be asked at all, NoConnection where it is not reached.
    """
    try:
        with about(stage, item):
            return await predictor.acall(**inputs)
    except NoConnection:
        raise  # the judge is not there at all: this is no failure of one pair
    except RowError as error:
        return error.told
