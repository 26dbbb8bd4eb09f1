"""The filters applied to a data set, one after the other: each decides on the rows that the one before it kept."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from refed_dspy.data.on_disk import OnDisk, RowsOnDisk
from refed_dspy.filters.base import Decision, JudgeFilter, Step, TextFilter, decide, labels, preview
from refed_dspy.filters.rouge import RougeFilter, select
from refed_dspy.runs.filter.decisions import Decisions

IN_SEEDED_ORDER = {"rouge", "random"}
"""Filters that take the rows in an order drawn by the seed (paper notes, section 3), as judges do to choose among equal
scores. All others take the rows in the order of the data, so that of two rows alike the first stays."""
BEYOND = "beyond keep"
NOT_REACHED = "not checked: enough were kept"

AskJudge = Callable[[JudgeFilter, RowsOnDisk], Decisions]
"""A judge filter's decision on each row that it reached, by row number."""


@dataclass(frozen=True)
class FilterPass:
    """One filter's pass over the rows: how many rows came in, and its decision on each, by row number.

    A row without a decision was not reached (a cap ended the work), or the judge did not answer on it. `keep`: how many
    rows it was to keep at most.
    """

    label: str
    rows_in: int
    decisions: Decisions
    keep: int | None = None


@dataclass(frozen=True)
class FilteredRows:
    """What all filters made of the rows."""

    kept: RowsOnDisk
    passes: Sequence[FilterPass]
    undecided: RowsOnDisk
    """Rows without a decision, neither kept nor dropped: a cap ended the work, or the judge did not answer."""


def _no_judge(judge_filter: JudgeFilter, rows: RowsOnDisk) -> Decisions:
    raise AssertionError(f"{judge_filter.name}: there is no judge to ask about {len(rows)} rows")


def apply_filters(rows: RowsOnDisk, steps: Sequence[Step], seed: int, ask_judge: AskJudge = _no_judge) -> FilteredRows:
    """Each row is kept by all filters, dropped by the first that drops it, or undecided if one could not be asked.

    Rows stay in their order. Once no row is left, no further filter is asked.
    """
    left: Sequence[int] = range(len(rows))
    passes, undecided = list[FilterPass](), array("I")
    for label, step in zip(labels(steps), steps, strict=True):
        came = rows.at(left)
        decisions = _decisions(step, label, came, seed, ask_judge) if left else Decisions()
        passes.append(FilterPass(label, len(left), decisions, step.keep))
        undecided.extend(place for place in left if rows.numbers[place] not in decisions)
        left = array("I", (place for place in left if decisions.keeps(rows.numbers[place])))
    return FilteredRows(rows.at(left), passes, rows.at(sorted(undecided)))


def _decisions(step: Step, label: str, rows: RowsOnDisk, seed: int, ask_judge: AskJudge) -> Decisions:
    filter_ = step.filter
    shuffled = filter_.name in IN_SEEDED_ORDER or isinstance(filter_, JudgeFilter)
    order = rows.at(random.Random(seed).sample(range(len(rows)), len(rows))) if shuffled else rows
    if isinstance(filter_, JudgeFilter):
        return _best(ask_judge(filter_, rows), step.keep, order.numbers)
    if isinstance(filter_, RougeFilter) and "threshold" in step.settings:
        return _by_rouge(order, float(step.settings["threshold"]), step.keep)
    return _first(filter_, label, order, step.keep)


def _first(filter_: TextFilter, label: str, order: RowsOnDisk, keep: int | None) -> Decisions:
    """Keep the first `keep` that pass; the filter does not look at the rows after them."""
    decisions = Decisions()
    kept = 0
    for place, number in enumerate(order.numbers):
        if keep is not None and kept >= keep:
            decisions[number] = Decision(False, NOT_REACHED)
            continue
        decisions[number] = decision = decide(filter_, label, order[place])
        kept += decision.kept
    return decisions


def _by_rouge(order: RowsOnDisk, threshold: float, keep: int | None) -> Decisions:
    """The decisions that RougeFilter makes row by row, all at once: see filters/rouge.py."""
    texts = OnDisk(row.instruction for row in order)
    decisions = Decisions()
    for number, match in zip(order.numbers, select(texts, threshold, keep), strict=True):
        if not match.visited:
            decisions[number] = Decision(False, NOT_REACHED)
        elif match.kept:
            decisions[number] = Decision(True, "", match.score)
        else:
            like = "" if match.like is None else preview(texts[match.like])
            decisions[number] = Decision(False, "like a kept one", match.score, like)
    return decisions


def _best(decisions: Decisions, keep: int | None, order: Sequence[int]) -> Decisions:
    """Of those that pass, keep the `keep` with the highest scores; among equal scores, the first in `order`."""
    passed = {number: decisions[number].score for number in order if decisions.keeps(number)}
    if keep is not None and len(passed) > keep:
        ranked = sorted(passed, key=lambda number: -(passed[number] or 0))  # stable: the first of equals stays
        for number in ranked[keep:]:
            decisions[number] = Decision(False, BEYOND, passed[number])
    return decisions
