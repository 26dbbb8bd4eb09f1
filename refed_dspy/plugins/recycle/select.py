"""Selective Reflection-Tuning (paper notes, section 4): after each pass, keep its result only if the scores say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from refed_dspy.config.scorer import Template
from refed_dspy.plugins.metrics.perplexity import Difficulty, Scorer, ifd
from refed_dspy.plugins.recycle.program import IMPROVED, Improved, Recycled, Reflected
from refed_dspy.records import DataRow

UNSCORED = "could not be scored"
UNIMPROVED = "response not improved"


@dataclass(frozen=True)
class Chosen:
    """A row's pair after the first pass, the original or the new one: the second pass works on this pair."""

    pair: tuple[str, str]
    reflected: Reflected
    """The first pass's result. If the new pair was not chosen, it is left out and the reason is that of the choice."""
    difficulty: Difficulty
    """Of the pair."""
    original: Difficulty


@dataclass(frozen=True)
class Selected:
    """A row's final figures, and why it is dropped: it teaches nothing (IFD or r-IFD not below 1), or its response was
    not improved."""

    ifd: float | None
    r_ifd: float | None
    original_ifd: float | None
    original_r_ifd: float | None
    template: Template
    """Of these figures. Rows without one were scored by an earlier version, whose figures are others."""
    selection_reason: str = ""

    @property
    def kept(self) -> bool:
        """Whether there is no reason to drop it; a row without a figure is kept."""
        return not self.selection_reason


@dataclass(frozen=True)
class Selection:
    """How selective mode decides. `unimproved`: what becomes of a row that ends without a better response."""

    scorer: Scorer
    template: Template = "vicuna"
    unimproved: Literal["keep", "drop"] = "drop"

    def choose(self, rows: Sequence[DataRow], reflected: Mapping[int, Reflected]) -> dict[int, Chosen]:
        """Row number → its pair for the second pass.

        That is the new pair if its IFD is higher than the original's, which means that it is harder. The original stays
        if a figure cannot be computed or there is no new pair.
        """
        originals = [(row.instruction, row.response) for row in rows]
        new_pairs = {}
        for row in rows:
            new_pair, _ = reflected[row.number]
            if new_pair is not None:
                new_pairs[row.number] = new_pair
        difficulties = ifd(self.scorer, [*originals, *new_pairs.values()], self.template)
        of_originals, of_new = difficulties[: len(originals)], difficulties[len(originals) :]
        new_difficulties = dict(zip(new_pairs, of_new, strict=True))
        return {
            row.number: _chosen(pair, reflected[row.number], original, new_difficulties.get(row.number))
            for row, pair, original in zip(rows, originals, of_originals, strict=True)
        }

    def select(
        self, chosen: Mapping[int, Chosen], improved: Mapping[int, Improved]
    ) -> tuple[dict[int, Recycled], dict[int, Selected]]:
        """What became of each row that is in `improved`, and its figures, by row number.

        The better response is kept if its r-IFD is lower than that of the response before, which means that it says
        more of its instruction. A pair is then dropped unless IFD < 1 and r-IFD < 1 as far as they can be computed, and
        where `unimproved` says so, without a better response.
        """
        better = {
            number: (chosen[number].pair[0], response)
            for number, (response, _) in improved.items()
            if response is not None
        }
        of_better = dict(zip(better, ifd(self.scorer, list(better.values()), self.template), strict=True))
        made: dict[int, Recycled] = {}
        selected: dict[int, Selected] = {}
        for number, result in improved.items():
            choice = chosen[number]
            before = difficulty = choice.difficulty
            if number in better:
                after = of_better[number]
                if _above(before.r_ifd, after.r_ifd):
                    difficulty = after
                else:
                    result = None, _why("r-IFD not lower", after.r_ifd, before.r_ifd)
            made[number] = Recycled.of(choice.pair, choice.reflected, result)
            selected[number] = Selected(
                difficulty.ifd,
                difficulty.r_ifd,
                choice.original.ifd,
                choice.original.r_ifd,
                self.template,
                _too_hard(difficulty) or self._unimproved(made[number]),
            )
        return made, selected

    def _unimproved(self, made: Recycled) -> str:
        return UNIMPROVED if self.unimproved == "drop" and made.response_from != IMPROVED else ""


def _chosen(pair: tuple[str, str], reflected: Reflected, original: Difficulty, new: Difficulty | None) -> Chosen:
    """`original` and `new` are the difficulties of the two pairs; `new` is None if there is no new pair."""
    new_pair, why = reflected
    if new_pair is not None and new is not None:
        if _above(new.ifd, original.ifd):
            return Chosen(new_pair, reflected, new, original)
        why = _why("IFD not higher", new.ifd, original.ifd)
    return Chosen(pair, (None, why), original, original)


def _too_hard(difficulty: Difficulty) -> str:
    """Why the pair teaches nothing; empty if it teaches something."""
    if difficulty.ifd is not None and difficulty.ifd >= 1:
        return "IFD not below 1"
    return "r-IFD not below 1" if difficulty.r_ifd is not None and difficulty.r_ifd >= 1 else ""


def _above(figure: float | None, other: float | None) -> bool:
    return figure is not None and other is not None and figure > other


def _why(what: str, new: float | None, old: float | None) -> str:
    return UNSCORED if new is None or old is None else f"{what}: {new:.4g}, was {old:.4g}"
