"""The judge's prompts: which of two answers is better, and how good a text is, both by a named criterion; and which
criteria of its reference an answer meets.

The criterion is an input, so that one program, tuned once, serves every criterion (HEAP; paper notes, section 5).
Inputs are ordered from the most stable to the most variable.
"""

from __future__ import annotations

from typing import Annotated, Literal

import dspy

from refed_dspy.records import AtMost

Reason = Annotated[str, AtMost(600)]
Preference = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A", "cannot tell"]
Answers = Annotated[list[Literal["yes", "no"]], AtMost(8)]
Grade = Literal["1", "2", "3", "4", "5", "cannot tell"]


class PairwiseComparison(dspy.Signature):
    """You compare two answers to the same instruction, as a fair and demanding expert would.

    Judge by the criterion alone. Neither the order of the answers nor their length is a merit. Say first, in one or
    two sentences, what decides between them, naming what the weaker one lacks; then give the verdict: A>>B (A is much
    better), A>B (A is better), A=B (they are equally good), B>A, B>>A, or cannot tell.
    """

    criterion: str = dspy.InputField(desc="what to judge by")
    description: str = dspy.InputField(desc="what the criterion means")
    instruction: str = dspy.InputField(desc="the instruction that both answers are for")
    answer_a: str = dspy.InputField(desc="answer A")
    answer_b: str = dspy.InputField(desc="answer B")
    reason: Reason = dspy.OutputField(desc="what decides, in one or two sentences")
    verdict: Preference = dspy.OutputField(desc="the verdict")


class RubricGrading(dspy.Signature):
    """You grade a text by one criterion, as a fair and demanding expert would.

    Judge by the criterion alone. Say first, in one or two sentences, what the text does well or lacks by that
    criterion, as advice to its writer; then grade it: 1 (fails it), 2 (poor), 3 (fair), 4 (good), 5 (could not be
    better), or cannot tell.
    """

    criterion: str = dspy.InputField(desc="what to grade by")
    description: str = dspy.InputField(desc="what the criterion means")
    context: str = dspy.InputField(desc="what the text belongs to, or is compared with")
    text: str = dspy.InputField(desc="the text to grade")
    reason: Reason = dspy.OutputField(desc="what it does well or lacks, in one or two sentences")
    grade: Grade = dspy.OutputField(desc="the grade")


class CriteriaCheck(dspy.Signature):
    """You check an answer against a list of criteria, as a fair and demanding expert would.

    Take one criterion after the other, by itself. Say yes only where the answer clearly meets it, and no where it does
    so in part, or not at all. A criterion that cannot apply to an answer to this instruction is met.
    """

    criteria: list[str] = dspy.InputField(desc="the criteria, as questions")
    instruction: str = dspy.InputField(desc="the instruction that the answer is for")
    answer: str = dspy.InputField(desc="the answer to check")
    met: Answers = dspy.OutputField(desc="yes or no for each of the criteria, in their order, and nothing else")
