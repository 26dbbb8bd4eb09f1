"""Selective Reflection-Tuning (paper notes, section 4): after each pass, what it made is kept where it is worth it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refed_dspy.metrics.perplexity import Difficulty, Scorer, ifd
from refed_dspy.programs.reflection import Improved, Recycled, Reflected
from refed_dspy.records import DataRow

UNSCORED = "could not be scored"


@dataclass(frozen=True)
class Chosen:
    """A row's pair after the first pass, the original one or the new one: the second pass is over this."""

    pair: tuple[str, str]
    reflected: Reflected
    """The first pass's result; the new pair is not in it where it was not chosen, and the reason is the choice's."""
    told: Difficulty
    """Of the pair."""
    original: Difficulty


@dataclass(frozen=True)
class Selected:
    """A row's figures in the end, and why it is dropped: it teaches nothing (IFD or r-IFD not below 1)."""

    ifd: float | None
    r_ifd: float | None
    original_ifd: float | None
    original_r_ifd: float | None
    reason: str = ""

    @property
    def kept(self) -> bool:
        """Whether there is no reason to drop it; a row without a figure is kept."""
        return not self.reason


def choose(rows: Sequence[DataRow], reflected: Mapping[int, Reflected], scorer: Scorer) -> dict[int, Chosen]:
    """Row number → its pair for the second pass: the new one where its IFD is higher than the original's, so that it
    is harder. Where a figure cannot be had, and where there is no new pair, the original stays."""
    originals = [(row.instruction, row.response) for row in rows]
    new = {row.number: pair for row in rows if (pair := reflected[row.number][0]) is not None}
    told = ifd(scorer, [*originals, *new.values()])
    of_new = dict(zip(new, told[len(originals) :], strict=True))
    return {
        row.number: _chosen(pair, reflected[row.number], old, of_new.get(row.number))
        for row, pair, old in zip(rows, originals, told[: len(originals)], strict=True)
    }


def _chosen(pair: tuple[str, str], reflected: Reflected, old: Difficulty, told: Difficulty | None) -> Chosen:
    """`told` is of the new pair, None where there is none."""
    new, why = reflected
    if new is not None and told is not None:
        if _above(told.ifd, old.ifd):
            return Chosen(new, reflected, told, old)
        why = _why("IFD not higher", told.ifd, old.ifd)
    return Chosen(pair, (None, why), old, old)


def select(
    chosen: Mapping[int, Chosen], improved: Mapping[int, Improved], scorer: Scorer
) -> tuple[dict[int, Recycled], dict[int, Selected]]:
    """What became of each row that is in `improved`, and its figures, by row number.

    The better response is kept where its r-IFD is lower than that of the response before: it says more of its
    instruction. What remains is dropped unless IFD < 1 and r-IFD < 1; where a figure cannot be had, it is kept.
    """
    better = {number: (chosen[number].pair[0], said) for number, (said, _) in improved.items() if said is not None}
    of_better = dict(zip(better, ifd(scorer, list(better.values())), strict=True))
    made: dict[int, Recycled] = {}
    selected: dict[int, Selected] = {}
    for number, result in improved.items():
        one = chosen[number]
        before = told = one.told
        if number in better:
            after = of_better[number]
            if _above(before.r_ifd, after.r_ifd):
                told = after
            else:
                result = None, _why("r-IFD not lower", after.r_ifd, before.r_ifd)
        made[number] = Recycled.of(one.pair, one.reflected, result)
        selected[number] = Selected(told.ifd, told.r_ifd, one.original.ifd, one.original.r_ifd, _too_hard(told))
    return made, selected


def _too_hard(told: Difficulty) -> str:
    """Why a pair teaches nothing, or nothing."""
    if told.ifd is not None and told.ifd >= 1:
        return "IFD not below 1"
    return "r-IFD not below 1" if told.r_ifd is not None and told.r_ifd >= 1 else ""


def _above(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one > other


def _why(what: str, new: float | None, old: float | None) -> str:
    return UNSCORED if new is None or old is None else f"{what}: {new:.4g}, was {old:.4g}"
