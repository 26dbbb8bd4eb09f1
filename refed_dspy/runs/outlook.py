"""What a start of a run will take, in one line that is told before its first call."""

from __future__ import annotations

from refed_dspy.ledger.budget import Budget
from refed_dspy.ledger.recorder import ENOUGH_CALLS
from refed_dspy.records import dollars
from refed_dspy.runs.plan import ToCome
from refed_dspy.runs.spec import RunSpec
from refed_dspy.text import counted

READ, WRITTEN = 900, 450
"""Usual tokens of a call (docs/how-to/costs.md)."""


def outlook(spec: RunSpec, to_come: ToCome, budget: Budget) -> str:
    """From how many references the samples come, and about how many calls and dollars that is: at what calls have cost
    so far, or at usual lengths. No dollars where several teachers share the work, a price is unknown, or answers are
    reused."""
    more = "more " if to_come.new < to_come.used else ""
    made = counted(to_come.samples, more + spec.work().unit.removesuffix("s"))
    calls = spec.calls_of(to_come)
    line = f"{made} from {of_all(to_come.used, len(spec.references))}: about {counted(calls, 'call')}"
    if spec.config.reuse is not None:
        return f"{line}, less what is reused"
    prices = [model.price for model in spec.models.values()]
    if spec.by_stage.several or None in prices:
        return line
    if (settled := budget.calls - budget.in_flight) >= ENOUGH_CALLS:
        return f"{line}, {dollars(budget.spent / settled * calls)}" if budget.spent else line
    usual = prices[0].cost(READ, 0, 0, WRITTEN) if prices[0] is not None else 0
    return f"{line}, {dollars(usual * calls)} at usual lengths" if usual else line


def of_all(used: int, references: int) -> str:
    """So many of the references, in words."""
    if used < references:
        return f"{used:,} of {references:,} references"
    return f"all {references:,} references" if references > 1 else "the one reference"
