"""What the judge said, in words for the model that rewrites prompts. Short: each word of it is paid for again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refed_dspy.programs.judges import Graded, Verdict
from refed_dspy.records import Sample

SHOWN, REASON = 240, 600
"""Characters of an instruction, and of a judge's reason, that are shown."""
LOWEST = 6
"""Grades that are shown, the lowest first."""


@dataclass(frozen=True)
class Judged:
    """What the judge said of one sample. `verdict` is None where the uncompiled program had no answer to compare."""

    sample: Sample
    baseline: str | None
    verdict: Verdict | None
    grades: tuple[Graded, ...]

    @property
    def longer(self) -> float:
        """The final answer's length over the baseline's; 1 where there is none."""
        return len(self.sample.improved_response) / max(1, len(self.baseline)) if self.baseline else 1.0


def feedback_on_instructions(judged: Sequence[Judged]) -> str:
    """The lowest grades of the instructions, with the judge's reasons."""
    graded = [(grade, each.sample.instruction) for each in judged for grade in each.grades if grade.grade is not None]
    if not graded:
        return "The judge graded none of the instructions."
    graded.sort(key=lambda pair: pair[0].grade or 0)
    lines = [
        f'- "{clipped(text)}": {grade.criterion} {grade.grade} of 5. {clipped(grade.reason, REASON)}'
        for grade, text in graded[:LOWEST]
    ]
    return "\n".join(["A judge graded the new instructions; the lowest grades and its reasons:", *lines])


def feedback_on_responses(judged: Sequence[Judged], graded: Sequence[Sequence[Graded]]) -> str:
    """How the final answers fared against the original prompts' answers, and what a judge finds lacking in them."""
    if not judged:
        return "There was no final answer to judge."
    return "\n\n".join(_one_answer(each, grades) for each, grades in zip(judged, graded, strict=True))


def _one_answer(judged: Judged, grades: Sequence[Graded]) -> str:
    lines = [f'The final answer to "{clipped(judged.sample.instruction)}" {_outcome(judged.verdict)}']
    if judged.verdict is not None:
        lines += [
            f"- Judge (A is this answer, B the original prompts'): {clipped(reason, REASON)}"
            for reason in judged.verdict.reasons
        ]
    lines += [f"- {grade.criterion} {grade.grade or '?'} of 5. {clipped(grade.reason, REASON)}" for grade in grades]
    if judged.longer > 1.5:
        lines.append(f"- It is {judged.longer:.1f} times as long as the original prompts' answer; length wins nothing.")
    return "\n".join(lines)


def _outcome(verdict: Verdict | None) -> str:
    if verdict is None:
        return "had nothing to be compared with."
    if verdict.preference is None:
        return f"could not be judged ({verdict.abstained})."
    won = "lost to" if verdict.preference < 0 else "beat" if verdict.preference > 0 else "tied with"
    return f"{won} the answer that the original prompts give."


def clipped(text: str, most: int = SHOWN) -> str:
    """`text` in at most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
