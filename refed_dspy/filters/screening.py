"""The filters of a run, in their order: they keep or drop each new instruction and each sample."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from refed_dspy.concurrency import Turn, aside
from refed_dspy.data.rows import passed_rows
from refed_dspy.errors import CheckFailed, NothingKept, RefedError, RowError, one_line
from refed_dspy.filters.base import (
    Decision,
    Filter,
    JudgeFilter,
    Step,
    TextFilter,
    decide,
    is_custom,
    labels,
    validated,
)
from refed_dspy.filters.command import CommandCheck
from refed_dspy.filters.judge import NO_JUDGE
from refed_dspy.ledger.connection import whole_run
from refed_dspy.ledger.history import Decided, decided_so_far, decisions_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import DecisionRow
from refed_dspy.records import DataRow

K = TypeVar("K")
INSTRUCTIONS_IN_A_ROW, SAMPLES_IN_A_ROW = 100, 50
"""A run ends when this many in a row are dropped: it would pay for ever. An instruction costs a twentieth of a
sample."""
ASKED_AGAIN = "asked again"
"""The remark on a kept sample whose first answer was dropped."""
FAR = 15
"""Where few are kept anyway, a run ends after FAR times as many drops in a row as one kept row has cost so far. If a
share p is kept, 15 / p in a row are all dropped by chance with (1 - p)^(15 / p) < 4e-7."""


class FilterFailed(Exception):
    """The caller's own filter of this label raised the error that is the cause."""


@dataclass(frozen=True)
class Fault:
    """Why a guard dropped a sample, and whether the plain response is at fault; else only the improvement is."""

    of_plain: bool
    reason: str

    def after(self, decisions: Sequence[DecisionRow]) -> list[DecisionRow]:
        """The `decisions` on the second answer, with a remark on the first."""
        guard, *others = decisions
        reason = "; ".join(filter(None, [guard.reason, ASKED_AGAIN])) if guard.kept else guard.reason
        detail = "; ".join(filter(None, [guard.detail, f"the first answer: {self.reason}"]))
        return [replace(guard, reason=reason, detail=detail), *others]


class Screening:
    """Filters that look at the instruction alone are applied before a response is paid for, the free ones first. The
    others are applied once there is a sample. The first filter that drops a row is the last one applied to it."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self._of_instruction = list[tuple[int, str, TextFilter]]()
        """Each filter with its position and its label."""
        self._instruction_judges = list[tuple[int, str, Filter]]()
        self._of_sample = list[tuple[int, str, Filter]]()
        for position, (label, step) in enumerate(zip(labels(steps), steps, strict=True)):
            filter_ = step.filter
            if not filter_.of_instruction:
                self._of_sample.append((position, label, filter_))
            elif isinstance(filter_, JudgeFilter):
                self._instruction_judges.append((position, label, filter_))
            else:
                self._of_instruction.append((position, label, filter_))
        self._instructions = Streak("instructions", INSTRUCTIONS_IN_A_ROW)
        self._samples = Streak("samples", SAMPLES_IN_A_ROW)
        self._folder = "DIR"
        self._warm = set[int]()
        self.one_at_a_time = Turn()
        """Held while a filter looks at a row, perhaps in a thread: some compare rows. `restore` makes it anew."""

    def identity(self) -> list[Any]:
        """What must not change between starts."""
        return [[label, dict(step.settings)] for label, step in zip(labels(self.steps), self.steps, strict=True)]

    async def screen_instructions(
        self, rows: Mapping[K, DataRow]
    ) -> tuple[dict[K, list[DecisionRow]], dict[K, FilterFailed]]:
        """The free filters' decisions on new instructions, each up to the first drop; and the errors of filters of the
        caller's own. `one_at_a_time` must be held."""
        made, errors = dict[K, list[DecisionRow]](), dict[K, FilterFailed]()

        def screen() -> None:
            for key, row in rows.items():
                try:
                    made[key] = self._screen_instruction(row)
                except FilterFailed as error:
                    errors[key] = error

        filters = [filter_ for _, _, filter_ in self._of_instruction]
        if filters and rows:
            all_rows = DataRow(0, "".join(row.instruction for row in rows.values()), "")
            await aside(self._reading(all_rows, *filters), screen)
        else:
            made |= {key: [] for key in rows}
        return made, errors

    def _screen_instruction(self, row: DataRow) -> list[DecisionRow]:
        """The free filters' decisions on a new instruction, up to the first drop. Raises FilterFailed for an error of a
        caller's own."""
        decisions = list[DecisionRow]()
        for position, label, filter_ in self._of_instruction:
            with _own_errors(filter_, label):
                decisions.append(_decision_row(label, position, decide(filter_, label, row)))
            if not decisions[-1].kept:
                break
        if decisions:
            self._instructions.count(decisions[-1])
        return decisions

    async def judge_instruction(self, row: DataRow, item: str) -> list[DecisionRow]:
        """The judges' decisions on an instruction that is about to be answered, up to the first drop.

        Raises NoAnswer where a judge did not answer: the instruction stays open, and is judged on the next start.
        """
        return await self._apply(self._instruction_judges, row, item)

    async def screen_sample(self, row: DataRow, item: str) -> list[DecisionRow]:
        """The decisions on a sample, up to the first drop.

        Raises NoAnswer where a judge did not answer: the sample is undecided, and judged on the next start.
        """
        return await self._apply(self._of_sample, row, item)

    async def _apply(self, filters: Sequence[tuple[int, str, Filter]], row: DataRow, item: str) -> list[DecisionRow]:
        """The filters' decisions on `row`, up to the first drop. Raises FilterFailed for an error of a caller's own."""
        decisions = list[DecisionRow]()
        for position, label, filter_ in filters:
            with _own_errors(filter_, label):
                if isinstance(filter_, JudgeFilter):
                    decision = validated(await filter_.judged(row, item), label)
                elif isinstance(filter_, CommandCheck):
                    decision = await filter_.checked(row)
                else:
                    async with self.one_at_a_time:
                        decision = await aside(self._reading(row, filter_), decide, filter_, label, row)
            decisions.append(_decision_row(label, position, decision))
            if not decision.kept:
                break
        return decisions

    async def fault(self, row: DataRow, decisions: Sequence[DecisionRow]) -> Fault | None:
        """What is wrong with a sample on which these `decisions` were made, where another answer may be better: a guard
        (a filter that can say `plain_is_bad`) dropped it before any other filter saw it."""
        if len(decisions) != 1 or decisions[0].kept:
            return None
        _, _, first = self._of_sample[0]
        plain_is_bad: Callable[[DataRow], bool] | None = getattr(first, "plain_is_bad", None)
        if plain_is_bad is None:
            return None
        return Fault(await aside(self._reading(row, first), plain_is_bad, row), decisions[0].reason)

    def _reading(self, row: DataRow, *filters: Filter) -> float:
        """How long a text `filters` read (`aside`). A filter of the caller's own may belong to its thread, so it stays
        there; the first row takes long, since some load something for it."""
        if any(map(is_custom, filters)):
            return 0
        if new := {id(filter_) for filter_ in filters} - self._warm:
            self._warm |= new
            return math.inf
        return len(row.instruction) + len(row.response) + len(row.plain or "")

    def count_sample(self, decisions: Sequence[DecisionRow]) -> None:
        """Count a sample by all `decisions` on it, or on its instruction where judges dropped that."""
        if decisions:
            self._samples.count(decisions[-1])

    def check_hope(self) -> None:
        """Raises NothingKept where the filters drop everything, or where a judge never decides."""
        for _, _, filter_ in (*self._instruction_judges, *self._of_sample):
            if isinstance(filter_, JudgeFilter) and (message := filter_.hopeless(NO_JUDGE)):
                raise NothingKept(message)
        for streak in (self._instructions, self._samples):
            if drops := streak.hopeless():
                raise NothingKept(
                    f"filters: {drops}",
                    "the run stopped before paying for more: loosen or remove the filter in a new run with reuse: "
                    f"{self._folder}, which pays for nothing twice",
                )

    def restore(self, ledger: Ledger) -> None:
        """Take over what earlier starts decided: filters that compare rows remember those that they kept.

        Raises NothingKept where earlier starts showed that nothing will be kept.
        """
        self.one_at_a_time = Turn()
        self._folder = one_line(whole_run(ledger.path.parent), 200)
        for _, label, filter_ in (*self._of_instruction, *self._instruction_judges, *self._of_sample):
            if isinstance(filter_, JudgeFilter):
                for decided in decisions_of(ledger, label):
                    filter_.recall(Decision(decided.kept, decided.reason, decided.score, decided.detail))
            elif type(filter_).remember is not TextFilter.remember:
                for row in passed_rows(ledger, label):
                    filter_.remember(row)
        of_samples = [*self._instruction_judges, *self._of_sample]
        for streak, filters in ((self._instructions, self._of_instruction), (self._samples, of_samples)):
            streak.restore(decided_so_far(ledger, [label for _, label, _ in filters]))
        self.check_hope()


class Streak:
    """How many were dropped since the last one that was kept, compared with what a kept one took before.

    `noun`: what is counted, "samples" say. `least`: no shorter streak is hopeless.
    """

    def __init__(self, noun: str, least: int) -> None:
        self._noun, self._least = noun, least
        self._before = self._kept = 0
        self._dropped: Counter[tuple[str, str]] = Counter()

    def count(self, last: DecisionRow) -> None:
        """`last`: the last decision on an instruction or a sample."""
        if not last.kept:
            self._dropped[last.filter, last.reason] += 1
            return
        self._before += self._dropped.total() + 1
        self._kept += 1
        self._dropped.clear()

    def restore(self, decided: Decided) -> None:
        """Go on from what earlier starts decided."""
        self._before, self._kept, self._dropped = decided

    def hopeless(self) -> str:
        """What was dropped, where the streak is so long that nothing more will be kept. Else empty."""
        dropped = self._dropped.total()
        far = FAR * self._before / self._kept if self._kept else 0
        if dropped < max(self._least, far):
            return ""
        (name, reason), count = self._dropped.most_common(1)[0]
        return f"the last {dropped} {self._noun} were all dropped, {count} of them by {name} ({one_line(reason, 60)})"


@contextmanager
def _own_errors(filter_: Filter, label: str) -> Iterator[None]:
    """Raises FilterFailed in place of an error of the caller's own filter, or check by command, in the block."""
    try:
        yield
    except Exception as error:
        of_a_call = isinstance(filter_, JudgeFilter) and isinstance(error, RowError)
        ends_the_run = isinstance(error, RefedError) and not isinstance(error, RowError)
        if of_a_call or ends_the_run or not (is_custom(filter_) or isinstance(error, CheckFailed)):
            raise
        raise FilterFailed(label) from error


def _decision_row(label: str, position: int, decision: Decision) -> DecisionRow:
    reason = decision.remark if decision.kept else decision.reason
    return DecisionRow(label, position, decision.kept, decision.score, reason, decision.detail)
