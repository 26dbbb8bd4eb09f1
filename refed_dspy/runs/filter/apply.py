"""The filters applied to a data set, one after the other: each decides on the rows that the one before it kept."""

from __future__ import annotations

import math
import random
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import compress, count
from typing import NamedTuple

from refed_dspy.data.dataset import OnDisk, RowsOnDisk
from refed_dspy.errors import CheckFailed, TooManyFailed
from refed_dspy.filters.base import Decision, JudgeFilter, Step, TextFilter, decide, labels, preview
from refed_dspy.filters.command import CommandCheck
from refed_dspy.filters.rouge import RougeFilter, select
from refed_dspy.teachers.failures import DEFAULT_SHARE, LEAST_CALLS, RECENT

IN_SEEDED_ORDER = {"rouge", "random"}
"""Filters that take the rows in an order drawn by the seed (paper notes, section 3), as judges do to choose among equal
scores. All others take the rows in the order of the data, so that of two rows alike the first stays."""
BEYOND = "beyond keep"
NOT_REACHED = "not checked: enough were kept"


class Outcome(NamedTuple):
    """What many decisions have in common."""

    kept: bool
    reason: str
    remark: str
    scored: bool


class Decisions(Mapping[int, Decision]):
    """Decisions by row number, in the order of the numbers, which are small. Takes 16 bytes of memory a row; details
    are on disk."""

    def __init__(self) -> None:
        self._places: dict[Outcome, int] = {}
        self._outcomes = list[Outcome]()
        self._outcome, self._score, self._detail = array("i"), array("d"), array("i")
        """By number: a place in `_outcomes`, -1 for none; the score; a place in `_details`, -1 for none."""
        self._details = OnDisk[str]()
        self.failures = dict[int, str]()
        """By number, in the order of the data: why a row has no decision, where a check by command failed on it."""

    def __setitem__(self, number: int, decision: Decision) -> None:
        if (missing := number + 1 - len(self._outcome)) > 0:
            self._outcome.extend([-1] * missing)
            self._score.extend([math.nan] * missing)
            self._detail.extend([-1] * missing)
        outcome = Outcome(decision.kept, decision.reason, decision.remark, decision.score is not None)
        if outcome not in self._places:
            self._places[outcome] = len(self._outcomes)
            self._outcomes.append(outcome)
        self._outcome[number] = self._places[outcome]
        self._score[number] = math.nan if decision.score is None else decision.score
        self._detail[number] = len(self._details) if decision.detail else -1
        if decision.detail:
            self._details.append(decision.detail)

    def __getitem__(self, number: int) -> Decision:
        if number not in self:
            raise KeyError(number)
        outcome, detail = self._outcomes[self._outcome[number]], self._detail[number]
        score, told = self._score[number] if outcome.scored else None, "" if detail < 0 else self._details[detail]
        return Decision(outcome.kept, outcome.reason, score, told, outcome.remark)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number < len(self._outcome) and self._outcome[number] >= 0

    def __iter__(self) -> Iterator[int]:
        return compress(count(), (place >= 0 for place in self._outcome))

    def __len__(self) -> int:
        return len(self._outcome) - self._outcome.count(-1)

    def keeps(self, number: int) -> bool:
        """Whether there is a decision on the row, to keep it."""
        return number in self and self._outcomes[self._outcome[number]].kept

    def drops(self, number: int) -> bool:
        """Whether there is a decision on the row, to drop it."""
        return number in self and not self._outcomes[self._outcome[number]].kept

    def tallied(self) -> Counter[Outcome]:
        """How many decisions have each outcome."""
        counts = Counter(self._outcome)
        return Counter({self._outcomes[place]: number for place, number in counts.items() if place >= 0})


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


def apply_filters(
    rows: RowsOnDisk, steps: Sequence[Step], seed: int, ask_judge: Callable[[JudgeFilter, RowsOnDisk], Decisions]
) -> FilteredRows:
    """Each row is kept by all filters, dropped by the first that drops it, or undecided if one could not be asked.

    `ask_judge`: a judge filter's decision on each row that it reached, by row number.

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


def _decisions(
    step: Step, label: str, rows: RowsOnDisk, seed: int, ask_judge: Callable[[JudgeFilter, RowsOnDisk], Decisions]
) -> Decisions:
    filter_ = step.filter
    shuffled = filter_.name in IN_SEEDED_ORDER or isinstance(filter_, JudgeFilter)
    order = rows.at(random.Random(seed).sample(range(len(rows)), len(rows))) if shuffled else rows
    if isinstance(filter_, JudgeFilter):
        return _best(ask_judge(filter_, rows), step.keep, order.numbers)
    if isinstance(filter_, CommandCheck):
        return _by_command(filter_, rows, step.keep)
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


def _by_command(command: CommandCheck, rows: RowsOnDisk, keep: int | None) -> Decisions:
    """As `_first`, several rows at once. Raises TooManyFailed by the rule for models (teachers/failures.py)."""
    decisions, recent, kept = Decisions(), deque[bool](maxlen=RECENT), 0
    with closing(command.checks(rows)) as checks:
        for number, check in zip(rows.numbers, checks, strict=True):
            recent.append(check.exception() is None)
            try:
                decisions[number] = check.result()
                kept += check.result().kept
            except CheckFailed as error:
                decisions.failures[number], failed = str(error), recent.count(False)
                if failed == len(rows) or (len(recent) >= LEAST_CALLS and failed / len(recent) >= DEFAULT_SHARE):
                    many = f"command failed on {failed} of the last {len(recent)} rows"
                    raise TooManyFailed(f"{many}, the last: {error} — repair it") from None
            if kept == keep:
                break
    for number in (each for each in rows.numbers if each not in decisions and each not in decisions.failures):
        decisions[number] = Decision(False, NOT_REACHED)
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
