"""The filters applied to a data set, one after the other: each decides on the rows that the one before it kept."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from refed_dspy.filters.base import Decision, JudgeFilter, Step, TextFilter, decide, labels, preview
from refed_dspy.filters.rouge import RougeFilter, select
from refed_dspy.records import DataRow

IN_SEEDED_ORDER = {"rouge", "random"}
"""Filters that take the rows in an order drawn by the seed (paper notes, section 3), as judges do to choose among equal
scores. All others take the rows in the order of the data, so that of two rows alike the first stays."""
BEYOND = "beyond keep"
NOT_REACHED = "not checked: enough were kept"

AskJudge = Callable[[JudgeFilter, Sequence[DataRow]], Awaitable[dict[int, Decision]]]
"""A judge filter's decision on each row that it reached, by row number."""


@dataclass(frozen=True)
class FilterPass:
    """One filter's pass over the rows: how many rows came in, and its decision on each, by row number.

    A row without a decision was not reached (a cap ended the work), or the judge did not answer on it. `keep`: how many
    rows it was to keep at most.
    """

    label: str
    rows_in: int
    decisions: dict[int, Decision]
    keep: int | None = None


@dataclass(frozen=True)
class FilteredRows:
    """What all filters made of the rows."""

    kept: Sequence[DataRow]
    passes: Sequence[FilterPass]
    undecided: Sequence[DataRow] = field(default_factory=tuple)
    """Rows without a decision, neither kept nor dropped: a cap ended the work, or the judge did not answer."""


async def apply_filters(rows: Sequence[DataRow], steps: Sequence[Step], seed: int, ask_judge: AskJudge) -> FilteredRows:
    """Each row is kept by all filters, dropped by the first that drops it, or undecided if one could not be asked.

    Rows stay in their order. Once no row is left, no further filter is asked.
    """
    left, passes, undecided = list(rows), list[FilterPass](), list[DataRow]()
    for label, step in zip(labels(steps), steps, strict=True):
        decisions = await _decisions(step, label, left, seed, ask_judge) if left else {}
        passes.append(FilterPass(label, len(left), decisions, step.keep))
        undecided += [row for row in left if row.number not in decisions]
        left = [row for row in left if row.number in decisions and decisions[row.number].kept]
    return FilteredRows(left, passes, sorted(undecided, key=lambda row: row.number))


async def _decisions(
    step: Step, label: str, rows: Sequence[DataRow], seed: int, ask_judge: AskJudge
) -> dict[int, Decision]:
    """By row number, in no particular order: a judge's answers come in any order."""
    filter_ = step.filter
    shuffled = filter_.name in IN_SEEDED_ORDER or isinstance(filter_, JudgeFilter)
    order = random.Random(seed).sample(list(rows), len(rows)) if shuffled else list(rows)
    if isinstance(filter_, JudgeFilter):
        return _best(await ask_judge(filter_, rows), step.keep, order)
    if isinstance(filter_, RougeFilter) and "threshold" in step.settings:
        return _by_rouge(order, float(step.settings["threshold"]), step.keep)
    return _first(filter_, label, order, step.keep)


def _first(filter_: TextFilter, label: str, order: Sequence[DataRow], keep: int | None) -> dict[int, Decision]:
    """Keep the first `keep` that pass; the filter does not look at the rows after them."""
    decisions: dict[int, Decision] = {}
    kept = 0
    for row in order:
        if keep is not None and kept >= keep:
            decisions[row.number] = Decision(False, NOT_REACHED)
            continue
        decisions[row.number] = decide(filter_, label, row)
        kept += decisions[row.number].kept
    return decisions


def _by_rouge(order: Sequence[DataRow], threshold: float, keep: int | None) -> dict[int, Decision]:
    """The decisions that RougeFilter makes row by row, all at once: see filters/rouge.py."""
    texts = [row.instruction for row in order]
    decisions = {}
    for row, match in zip(order, select(texts, threshold, keep), strict=True):
        if not match.visited:
            decisions[row.number] = Decision(False, NOT_REACHED)
        elif match.kept:
            decisions[row.number] = Decision(True, "", match.score)
        else:
            like = "" if match.like is None else preview(texts[match.like])
            decisions[row.number] = Decision(False, "like a kept one", match.score, like)
    return decisions


def _best(decisions: dict[int, Decision], keep: int | None, order: Sequence[DataRow]) -> dict[int, Decision]:
    """Of those that pass, keep the `keep` with the highest scores; among equal scores, the first in `order`."""
    passed = [row.number for row in order if row.number in decisions and decisions[row.number].kept]
    if keep is None or len(passed) <= keep:
        return decisions
    ranked = sorted(passed, key=lambda number: -(decisions[number].score or 0))  # stable: the first of equals stays
    beyond = {number: Decision(False, BEYOND, decisions[number].score) for number in ranked[keep:]}
    return {**decisions, **beyond}
