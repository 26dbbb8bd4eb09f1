"""The filters of a run, in their order: each new instruction and each sample is shown to them, and kept or dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from refed_dspy.data.rows import passed_rows
from refed_dspy.data.table import DataRow
from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.rows import Decided
from refed_dspy.errors import RunStopped
from refed_dspy.filters.decision import Decision, Filter, JudgeFilter, Step, TextFilter, labels
from refed_dspy.records import Sample

IN_A_ROW = 50
"""Rows in a row that are all dropped end a run: it would pay for ever."""


class Screening:
    """Filters that look at the instruction alone are asked before a response is paid for, the others once there is a
    sample. The first that drops a row ends it."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self._early, self._late = list[tuple[int, str, TextFilter]](), list[tuple[int, str, Filter]]()
        for position, (label, step) in enumerate(zip(labels(steps), steps, strict=True)):
            one = step.filter
            if not isinstance(one, JudgeFilter) and one.of_instruction:
                self._early.append((position, label, one))
            else:
                self._late.append((position, label, one))
        self._dropped: list[Decided] = []
        """Those dropped since a row was last kept."""

    def identity(self) -> list[Any]:
        """What may not change between starts."""
        return [[label, dict(step.settings)] for label, step in zip(labels(self.steps), self.steps, strict=True)]

    def of_instruction(self, text: str) -> list[Decided]:
        """What is said of a new instruction, up to the first that drops it."""
        row, said = DataRow(0, text, ""), list[Decided]()
        for position, label, one in self._early:
            said.append(_decided(label, position, one.check(row)))
            if not said[-1].kept:
                self._dropped.append(said[-1])
                break
        return said

    async def of_sample(self, sample: Sample, item: str) -> list[Decided]:
        """What is said of a sample, up to the first that drops it. Raises what a judge raises but RowError."""
        row, said = DataRow(0, sample.instruction, sample.improved_response, sample.response), list[Decided]()
        for position, label, one in self._late:
            decision = await one.judged(row, item) if isinstance(one, JudgeFilter) else one.check(row)
            said.append(_decided(label, position, decision))
            if not decision.kept:
                self._dropped.append(said[-1])
                return said
        self._dropped.clear()
        return said

    def check_fruitful(self) -> None:
        """Raises RunStopped where the filters drop whatever comes."""
        if len(self._dropped) >= IN_A_ROW:
            (name, reason), count = Counter((d.filter, d.reason) for d in self._dropped).most_common(1)[0]
            raise RunStopped(
                f"filters: the last {len(self._dropped)} rows were all dropped, {count} of them by {name} ({reason}); "
                "loosen it"
            )

    def restore(self, ledger: Ledger) -> None:
        """Let filters that compare rows know those that they kept on earlier starts."""
        for _, label, one in (*self._early, *self._late):
            if not isinstance(one, JudgeFilter):
                for row in passed_rows(ledger, label):
                    one.remember(row)


def _decided(label: str, position: int, decision: Decision) -> Decided:
    return Decided(label, position, decision.kept, decision.score, decision.reason, decision.detail)
