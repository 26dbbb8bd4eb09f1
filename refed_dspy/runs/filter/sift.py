"""A data set through its filters, one after the other: each looks at what the one before it kept."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from refed_dspy.filters.base import Decision, JudgeFilter, Step, TextFilter, checked, labels
from refed_dspy.filters.rouge import RougeFilter, beginning, select
from refed_dspy.records import DataRow

IN_SEEDED_ORDER = {"rouge", "random"}
"""Filters that go through the rows in an order drawn by the seed (paper notes, section 3), as judges do to choose among
equal scores; all others go through them as they stand, so that of two rows alike the first stays."""
BEYOND = "beyond keep"
NOT_REACHED = "not looked at: enough were kept"

Judging = Callable[[JudgeFilter, Sequence[DataRow]], Awaitable[dict[int, Decision]]]
"""A paid filter's decision on each row that it came to, by row number."""


@dataclass(frozen=True)
class Stage:
    """One filter's pass: how many rows came, and its decision on each, by row number. A row without one was not come
    to (a cap ended the work), or the judge did not answer. `keep`: so many it was to keep at most."""

    label: str
    came: int
    decisions: dict[int, Decision]
    keep: int | None = None


@dataclass(frozen=True)
class Sifted:
    """What all filters made of the rows."""

    kept: Sequence[DataRow]
    stages: Sequence[Stage]
    undecided: Sequence[DataRow] = field(default_factory=tuple)
    """Rows without a decision, neither kept nor dropped: a cap ended the work, or the judge did not answer."""

    def dropped(self) -> list[tuple[int, str, Decision]]:
        """(row number, filter, decision) of every row that is not kept, in the order of the rows."""
        out = [(n, stage.label, said) for stage in self.stages for n, said in stage.decisions.items() if not said.kept]
        return sorted(out, key=lambda one: one[0])


async def sift(rows: Sequence[DataRow], steps: Sequence[Step], seed: int, judging: Judging) -> Sifted:
    """Every row kept by all filters, dropped by the first that drops it, or undecided where one could not be asked.
    Rows stay in their order. Where none is left, no further filter is asked."""
    left, stages, undecided = list(rows), list[Stage](), list[DataRow]()
    for label, step in zip(labels(steps), steps, strict=True):
        decisions = await _decisions(step, label, left, seed, judging) if left else {}
        stages.append(Stage(label, len(left), decisions, step.keep))
        undecided += [row for row in left if row.number not in decisions]
        left = [row for row in left if row.number in decisions and decisions[row.number].kept]
    return Sifted(left, stages, sorted(undecided, key=lambda row: row.number))


async def _decisions(
    step: Step, label: str, rows: Sequence[DataRow], seed: int, judging: Judging
) -> dict[int, Decision]:
    """By row number; in no certain order, since judges answer as they can."""
    one = step.filter
    drawn = one.name in IN_SEEDED_ORDER or isinstance(one, JudgeFilter)
    order = random.Random(seed).sample(list(rows), len(rows)) if drawn else list(rows)
    if isinstance(one, JudgeFilter):
        return _best(await judging(one, rows), step.keep, order)
    if isinstance(one, RougeFilter) and "threshold" in step.settings:
        return _by_rouge(order, float(step.settings["threshold"]), step.keep)
    return _first(one, label, order, step.keep)


def _first(one: TextFilter, label: str, order: Sequence[DataRow], keep: int | None) -> dict[int, Decision]:
    """The first `keep` that pass; what comes after them is not looked at."""
    decisions: dict[int, Decision] = {}
    kept = 0
    for row in order:
        if keep is not None and kept >= keep:
            decisions[row.number] = Decision(False, NOT_REACHED)
            continue
        decisions[row.number] = checked(one, label, row)
        kept += decisions[row.number].kept
    return decisions


def _by_rouge(order: Sequence[DataRow], threshold: float, keep: int | None) -> dict[int, Decision]:
    """As RougeFilter decides row by row, all at once: see filters/rouge.py."""
    texts = [row.instruction for row in order]
    decisions = {}
    for row, match in zip(order, select(texts, threshold, keep), strict=True):
        if not match.visited:
            decisions[row.number] = Decision(False, NOT_REACHED)
        elif match.kept:
            decisions[row.number] = Decision(True, "", match.score)
        else:
            like = "" if match.like is None else beginning(texts[match.like])
            decisions[row.number] = Decision(False, "like a kept one", match.score, like)
    return decisions


def _best(decisions: dict[int, Decision], keep: int | None, order: Sequence[DataRow]) -> dict[int, Decision]:
    """Of those that pass, the `keep` with the highest scores; of equal ones, the first in `order`."""
    passed = [row.number for row in order if row.number in decisions and decisions[row.number].kept]
    if keep is None or len(passed) <= keep:
        return decisions
    ranked = sorted(passed, key=lambda number: -(decisions[number].score or 0))  # stable: the first of equals stays
    beyond = {number: Decision(False, BEYOND, decisions[number].score) for number in ranked[keep:]}
    return {**decisions, **beyond}
