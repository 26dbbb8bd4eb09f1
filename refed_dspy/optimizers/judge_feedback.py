"""The judge's verdicts and grades as feedback for the model that rewrites prompts. Short, since every token costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refed_dspy.programs.judges import Graded, Verdict
from refed_dspy.records import Sample

INSTRUCTION_LENGTH, REASON_LENGTH = 240, 600
"""How many characters of an instruction, and of a judge's reason, are shown at most."""
MOST_GRADES = 6
"""How many grades are shown, the lowest first."""


@dataclass(frozen=True)
class JudgedSample:
    """The judge's verdict and grades of one sample. `verdict` is None where the uncompiled program had no answer, be it
    that the endpoint gave none, or that it failed (`baseline_failed`): its answer was cut, malformed or refused."""

    sample: Sample
    baseline: str | None
    verdict: Verdict | None
    grades: tuple[Graded, ...]
    baseline_failed: bool = False

    @property
    def win(self) -> float | None:
        """1 where the final answer won, 0.5 for a tie and where the uncompiled program failed, 0 where it lost; None
        where that was not decided."""
        if self.baseline_failed:
            return 0.5
        return None if self.verdict is None else self.verdict.win

    @property
    def length_ratio(self) -> float:
        """The final answer's length over that of the baseline's; 1 where there is no baseline."""
        return max(1, len(self.sample.improved_response)) / len(self.baseline) if self.baseline else 1.0


def feedback_on_instructions(judged: Sequence[JudgedSample]) -> str:
    """The lowest grades of the instructions, with the judge's reasons."""
    graded = [
        (grade, sample.sample.instruction) for sample in judged for grade in sample.grades if grade.grade is not None
    ]
    if not graded:
        return "The judge graded none of the instructions."
    graded.sort(key=lambda pair: pair[0].grade or 0)
    lines = [
        f'- "{clipped(text)}": {grade.criterion} {grade.grade} of 5. {clipped(grade.reason, REASON_LENGTH)}'
        for grade, text in graded[:MOST_GRADES]
    ]
    return "\n".join(["A judge graded the new instructions; the lowest grades and its reasons:", *lines])


def feedback_on_responses(judged: Sequence[JudgedSample], graded: Sequence[Sequence[Graded]]) -> str:
    """How the final answers compare with the original prompts' answers, and what the judge criticises in them."""
    if not judged:
        return "There was no final answer to judge."
    return "\n\n".join(_feedback_on_answer(sample, grades) for sample, grades in zip(judged, graded, strict=True))


def _feedback_on_answer(judged: JudgedSample, grades: Sequence[Graded]) -> str:
    lines = [f'The final answer to "{clipped(judged.sample.instruction)}" {_outcome(judged.verdict)}']
    if judged.verdict is not None:
        lines += [
            f"- Judge (A is this answer, B the original prompts'): {clipped(reason, REASON_LENGTH)}"
            for reason in judged.verdict.reasons
        ]
    lines += [
        f"- {grade.criterion} {grade.grade or '?'} of 5. {clipped(grade.reason, REASON_LENGTH)}" for grade in grades
    ]
    if judged.length_ratio > 1.5:
        lines.append(
            f"- It is {judged.length_ratio:.1f} times as long as the original prompts' answer; length wins nothing."
        )
    return "\n".join(lines)


def _outcome(verdict: Verdict | None) -> str:
    if verdict is None:
        return "had nothing to be compared with."
    if verdict.preference is None:
        return f"could not be judged ({verdict.failed or verdict.abstained})."
    won = "lost to" if verdict.preference < 0 else "beat" if verdict.preference > 0 else "tied with"
    return f"{won} the answer that the original prompts give."


def clipped(text: str, longest: int = INSTRUCTION_LENGTH) -> str:
    """`text` in at most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
