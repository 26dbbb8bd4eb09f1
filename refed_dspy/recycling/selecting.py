"""Selective Reflection-Tuning (paper notes, section 4): a new part is kept where it is worth learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refed_dspy.data.table import DataRow
from refed_dspy.measures.perplexity import Difficulty, Scorer, ifd
from refed_dspy.programs.reflection import IMPROVED, ORIGINAL, REFLECTED, Recycled

UNSCORED = "could not be scored"


@dataclass(frozen=True)
class Selected:
    """What is kept of a recycled pair. `kept` is False where the pair teaches nothing (IFD or r-IFD not below 1)."""

    instruction: str
    response: str
    new_instruction: bool
    new_response: bool
    kept: bool
    reason: str
    """Why it is not kept."""
    ifd: float | None
    r_ifd: float | None
    original_ifd: float | None
    original_r_ifd: float | None
    instruction_reason: str = ""
    response_reason: str = ""
    """Why a new part was not taken; empty where it was, or where there was none."""

    @property
    def instruction_from(self) -> str:
        """ORIGINAL or REFLECTED."""
        return REFLECTED if self.new_instruction else ORIGINAL

    @property
    def response_from(self) -> str:
        """ORIGINAL, REFLECTED or IMPROVED."""
        return IMPROVED if self.new_response else self.instruction_from


def select(rows: Sequence[DataRow], made: Mapping[int, Recycled], scorer: Scorer) -> dict[int, Selected]:
    """Row number → what is kept of it.

    First the new instruction (with its answer) where its IFD is higher than the original's: it is harder; then the new
    response where its r-IFD is lower than that of the response before: it says more of its instruction. What remains is
    kept if IFD < 1 and r-IFD < 1. Where a figure cannot be had the original stays, and the pair is kept.
    """
    original = [(row.instruction, row.response) for row in rows]
    first = [(made[row.number].instruction, made[row.number].reflected_response) for row in rows]
    of_original, of_first = ifd(scorer, original), ifd(scorer, first)
    harder = [
        made[row.number].instruction_from != ORIGINAL and _above(new.ifd, old.ifd)
        for row, old, new in zip(rows, of_original, of_first, strict=True)
    ]
    taken = [new if is_new else old for old, new, is_new in zip(original, first, harder, strict=True)]
    # The second pass improved the response to the recycled instruction: it is no answer to the original one.
    last = [
        (pair[0], made[row.number].response) if pair[0] == made[row.number].instruction else pair
        for row, pair in zip(rows, taken, strict=True)
    ]
    of_taken = [new if is_new else old for old, new, is_new in zip(of_original, of_first, harder, strict=True)]
    of_last = ifd(scorer, last)
    return {
        row.number: _selected(
            made[row.number], (pair, of_taken[at]), (last[at], of_last[at]), (of_original[at], of_first[at])
        )
        for at, (row, pair) in enumerate(zip(rows, taken, strict=True))
    }


_Told = tuple[tuple[str, str], Difficulty]


def _selected(recycled: Recycled, taken: _Told, last: _Told, instructions: tuple[Difficulty, Difficulty]) -> Selected:
    """`taken` is the pair after the first choice, `last` the same with the improved response, if that answers it."""
    (pair, before), (better, after) = taken, last
    original, reflected = instructions
    new = recycled.instruction_from != ORIGINAL and pair[0] == recycled.instruction
    improved = better != pair and _above(before.r_ifd, after.r_ifd)
    chosen, told = (better, after) if improved else (pair, before)
    reason = ""
    if told.ifd is not None and told.ifd >= 1:
        reason = "IFD not below 1"
    elif told.r_ifd is not None and told.r_ifd >= 1:
        reason = "r-IFD not below 1"
    why = why_not = ""
    if recycled.instruction_from != ORIGINAL and not new:
        why = _why("IFD not higher", reflected.ifd, original.ifd)
        why_not = "answers the new instruction, which is not kept"
    elif better != pair and not improved:
        why_not = _why("r-IFD not lower", after.r_ifd, before.r_ifd)
    return Selected(
        *chosen, new, improved, not reason, reason, told.ifd, told.r_ifd, original.ifd, original.r_ifd, why, why_not
    )


def _above(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one > other


def _why(what: str, new: float | None, old: float | None) -> str:
    return UNSCORED if new is None or old is None else f"{what}: {new:.4g}, was {old:.4g}"
