"""Selective Reflection-Tuning (paper notes, section 4): a new part is kept where it is worth learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refed_dspy.data.table import DataRow
from refed_dspy.measures.perplexity import Difficulty, Scorer, ifd
from refed_dspy.programs.reflection import ORIGINAL, Recycled


@dataclass(frozen=True)
class Selected:
    """What is kept of a recycled pair. `kept` is False where the pair teaches nothing (IFD or r-IFD not below 1)."""

    instruction: str
    response: str
    new_instruction: bool
    new_response: bool
    kept: bool
    reason: str
    ifd: float | None
    r_ifd: float | None


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
        row.number: _selected(pair, better, is_new, before, after)
        for row, pair, better, is_new, before, after in zip(rows, taken, last, harder, of_taken, of_last, strict=True)
    }


def _selected(
    pair: tuple[str, str], better: tuple[str, str], new: bool, before: Difficulty, after: Difficulty
) -> Selected:
    improved = better != pair and _above(before.r_ifd, after.r_ifd)
    chosen, told = (better, after) if improved else (pair, before)
    reason = ""
    if told.ifd is not None and told.ifd >= 1:
        reason = "IFD not below 1"
    elif told.r_ifd is not None and told.r_ifd >= 1:
        reason = "r-IFD not below 1"
    return Selected(*chosen, new, improved, not reason, reason, told.ifd, told.r_ifd)


def _above(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one > other
