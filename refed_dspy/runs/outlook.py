"""What a start of a run will take, in one line that is told before its first call."""

from __future__ import annotations

from refed_dspy.ledger.budget import Budget
from refed_dspy.ledger.recorder import ENOUGH_CALLS
from refed_dspy.records import dollars
from refed_dspy.runs.plan import ToCome
from refed_dspy.runs.spec import RunSpec
from refed_dspy.text import counted

USUAL_TOKENS = 900, 450
"""Tokens that a call reads and writes, where none was made yet (docs/how-to/costs.md)."""


def outlook(spec: RunSpec, to_come: ToCome, budget: Budget) -> str:
    """From how many references the samples come, and about how many calls and dollars that is: at what calls have cost
    so far, or at USUAL_TOKENS. No dollars where several teachers share the work or a price is unknown."""
    whole = to_come.samples == spec.size
    unit = spec.work().unit
    made = counted(to_come.samples, unit.removesuffix("s")) if whole else f"{to_come.samples:,} more {unit}"
    calls = spec.calls_of(to_come)
    line = f"{made} from {of_all(to_come.used, len(spec.references))}: about {counted(calls, 'call')}"
    each = _cost_of_call(spec, budget)
    return f"{line}, {dollars(round(each * calls))}" if each else line


def of_all(used: int, references: int) -> str:
    """So many of the references, in words."""
    if used < references:
        return f"{used:,} of {references:,} references"
    return f"all {references:,} references" if references > 1 else "the one reference"


def _cost_of_call(spec: RunSpec, budget: Budget) -> float:
    """Picodollars; 0 where they are unknown, or nothing is charged."""
    prices = [model.price for model in spec.models.values()]
    if spec.by_stage.several or None in prices:
        return 0
    settled = budget.calls - budget.in_flight
    if settled >= ENOUGH_CALLS:
        return budget.spent / settled
    price = spec.by_stage.first.price
    return price.cost(USUAL_TOKENS[0], 0, 0, USUAL_TOKENS[1]) if price is not None else 0
