"""How far a compile came under the cap that ended it, in figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from refed_dspy.ledger.budget import Budget, Caps
from refed_dspy.optimizers.estimate import FOR_PROOF, caps_before_proof, with_room
from refed_dspy.records import dollars


@dataclass(frozen=True)
class Tuned:
    """How many of about `expected` evaluations `optimizer` did, and what was spent (picodollars) and called by then."""

    optimizer: str
    evaluations: int
    expected: int
    spent: int
    calls: int


def at_cap(cap: str, caps: Caps, budget: Budget, estimate: Mapping[str, Any], tuned: Tuned | None) -> str:
    """What is told of a compile that `cap` ended: the optimizer's evaluations, what was kept for the proof, what is
    used, and what would leave room for the rest. `tuned`: None where the cap came before the optimizer."""
    if tuned is None:
        done = "before the optimizer began"
    else:
        done = f"after {tuned.evaluations} of about {tuned.expected} evaluations of {tuned.optimizer}"
    said: Callable[[float], str]
    if cap == "max_cost":
        limit, used, kept, said = caps.max_cost, budget.spent, _kept(caps, estimate).max_cost, dollars
        foreseen, then, by_then = estimate["cost"], estimate["spent_then"], tuned and tuned.spent
        proof = estimate["proof_cost"]
    elif cap == "max_calls":
        limit, used, kept, said = caps.max_calls, budget.calls, _kept(caps, estimate).max_calls, _calls
        foreseen, then, by_then = estimate["calls"], estimate["calls_then"], tuned and tuned.calls
        proof = estimate["proof_calls"]
    else:
        return f"{cap} is reached {done}"
    if tuned is not None and by_then is not None and 0 < tuned.evaluations < tuned.expected:
        measured = then + (by_then - then) * tuned.expected / tuned.evaluations + FOR_PROOF * proof
        foreseen = max(foreseen, measured)  # never less than the estimate's whole
    held_back = f" ({said(kept)} had been kept for the proof)" if kept else ""
    name = f"{cap} {said(limit or 0)}".removesuffix(" calls")
    enough = f"; {said(with_room(foreseen))} would leave room for the rest" if foreseen else ""
    return f"{name} is reached {done}: {said(used)} used{held_back}{enough}"


def _kept(caps: Caps, estimate: Mapping[str, Any]) -> Caps:
    """Of each cap, what was kept for the proof."""
    before, _ = caps_before_proof(caps, None, estimate)
    cost = None if caps.max_cost is None else caps.max_cost - (before.max_cost or 0)
    calls = None if caps.max_calls is None else caps.max_calls - (before.max_calls or 0)
    return Caps(cost, calls)


def _calls(count: float) -> str:
    return f"{count:,.0f} calls"
