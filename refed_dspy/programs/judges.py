"""Judges: DSPy programs like any other, so they can be compiled too, against people's verdicts.

A judge that cannot decide abstains, and says why. An abstention is recorded; it is never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import dspy

from refed_dspy.concurrency import run_blocking, together
from refed_dspy.errors import NoConnection, RowError, one_line
from refed_dspy.programs.asking import ask
from refed_dspy.signatures.judging import PairwiseComparison, RubricGrading


@dataclass(frozen=True)
class Criterion:
    """What a judge judges by: its name and what it means."""

    name: str
    description: str


def _criteria(**described: str) -> Mapping[str, Criterion]:
    return MappingProxyType({name: Criterion(name.replace("_", " "), text) for name, text in described.items()})


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
"""For new instructions (the paper's wishes: practical, diverse, of the reference's complexity)."""
RESPONSE_CRITERIA = _criteria(
    content_quality="accurate, and as deep as the instruction calls for",
    communication="clear, well structured, fluent, in a fitting tone",
    instruction_alignment="does what is asked within its scope and constraints, and meets needs that are implied",
)
"""The paper's three groups of response feedback."""

_POINTS = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}


@dataclass(frozen=True)
class Verdict:
    """What a pairwise judge says of (answer A, answer B).

    `preference`: the mean of both orders, from 2 (A is much better) to -2; 0 is a tie; None: it abstained.
    `consistent`: both orders named the same winner, or both a tie; None where it abstained.
    """

    preference: float | None
    consistent: bool | None
    reasons: tuple[str, ...]
    abstained: str = ""

    @property
    def win(self) -> float | None:
        """1 where A won, 0.5 for a tie, 0 where B won; None where the judge abstained."""
        if self.preference is None:
            return None
        return 0.5 if self.preference == 0 else float(self.preference > 0)


SAME = Verdict(0, True, ("the two answers are the same",))


@dataclass(frozen=True)
class Graded:
    """A rubric judge's grade, 1 to 5; None: it abstained."""

    criterion: str
    grade: int | None
    reason: str

    @property
    def share(self) -> float | None:
        """The grade as 0 to 1."""
        return None if self.grade is None else (self.grade - 1) / 4


class PairwiseJudge(dspy.Module):
    """Asks which of two answers is better, in both orders. Where the orders disagree the verdict is a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.compare = dspy.Predict(PairwiseComparison)

    async def judge(
        self, instruction: str, answer_a: str, answer_b: str, criterion: Criterion = OVERALL, item: str = ""
    ) -> Verdict:
        """The verdict. One failed call is an abstention.

        Raises TeacherError where the judge cannot be asked at all, NoConnection where it is not reached.
        """
        if answer_a.strip() == answer_b.strip():
            return SAME
        async with together() as group:
            one_way = group.create_task(self._one_order(instruction, answer_a, answer_b, criterion, item))
            other_way = group.create_task(self._one_order(instruction, answer_b, answer_a, criterion, item))
        first, second = one_way.result(), other_way.result()
        reasons = tuple(
            said.reason if said is first else f"(asked with A and B exchanged) {said.reason}"
            for said in (first, second)
            if not isinstance(said, str)
        )
        for said in (first, second):
            if isinstance(said, str):
                return Verdict(None, None, reasons, said)
        if not {first.verdict, second.verdict} <= set(_POINTS):
            return Verdict(None, None, reasons, "the judge could not tell")
        one, two = _POINTS[first.verdict], -_POINTS[second.verdict]
        consistent = (one > 0) == (two > 0) and (one < 0) == (two < 0)
        return Verdict((one + two) / 2 if consistent else 0, consistent, reasons)

    async def _one_order(self, instruction: str, a: str, b: str, criterion: Criterion, item: str) -> Any:
        """The answer, or why there is none."""
        return await _answer_or_why(
            "pairwise_judge",
            item or one_line(instruction, 40),
            self.compare,
            criterion=criterion.name,
            description=criterion.description,
            instruction=instruction,
            answer_a=a,
            answer_b=b,
        )

    async def aforward(
        self,
        instruction: str,
        answer_a: str,
        answer_b: str,
        criterion: str = OVERALL.name,
        description: str = OVERALL.description,
    ) -> dspy.Prediction:
        """A prediction with the Verdict's fields."""
        said = await self.judge(instruction, answer_a, answer_b, Criterion(criterion, description))
        return dspy.Prediction(
            preference=said.preference, consistent=said.consistent, reasons=said.reasons, abstained=said.abstained
        )

    def forward(self, *inputs: Any, **named: Any) -> dspy.Prediction:
        """`aforward`, for callers without an event loop."""
        return run_blocking(self.aforward(*inputs, **named))


class RubricJudge(dspy.Module):
    """Grades one text by one named criterion."""

    def __init__(self) -> None:
        super().__init__()
        self.grade = dspy.Predict(RubricGrading)

    async def judge(self, text: str, context: str, criterion: Criterion, item: str = "") -> Graded:
        """The grade. One failed call is an abstention.

        Raises TeacherError where the judge cannot be asked at all, NoConnection where it is not reached.
        """
        said = await _answer_or_why(
            "rubric_judge",
            item or one_line(text, 40),
            self.grade,
            criterion=criterion.name,
            description=criterion.description,
            context=context,
            text=text,
        )
        if isinstance(said, str):
            return Graded(criterion.name, None, said)
        return Graded(criterion.name, int(said.grade) if said.grade.isdecimal() else None, said.reason)

    async def aforward(self, text: str, context: str, criterion: str, description: str) -> dspy.Prediction:
        """A prediction with `grade` (1 to 5, or None) and `reason`."""
        said = await self.judge(text, context, Criterion(criterion, description))
        return dspy.Prediction(grade=said.grade, reason=said.reason)

    def forward(self, *inputs: Any, **named: Any) -> dspy.Prediction:
        """`aforward`, for callers without an event loop."""
        return run_blocking(self.aforward(*inputs, **named))


async def _answer_or_why(stage: str, item: str, predictor: dspy.Predict, **inputs: Any) -> Any:
    try:
        return await ask(stage, item, predictor, **inputs)
    except NoConnection:
        raise  # no judge at all, and not this pair's bad luck
    except RowError as error:
        return f"{error.kind}: {error.reason}"
