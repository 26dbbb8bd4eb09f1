"""What the whole compile will take, going by its first evaluations, and what of the caps is kept back for the proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.candidates import Trial
from refed_dspy.optimizers.dspy_optimizers import Optimizer
from refed_dspy.optimizers.gateway import Gateway
from refed_dspy.optimizers.spec import CompileSpec

DEARER = 1.6
"""A candidate's evaluation costs about so many times the uncompiled program's, which is compared with nothing."""
MOST_HELD_BACK = 0.5


def estimated(
    job: CompileSpec, gateway: Gateway, uncompiled: Trial, optimizer: Optimizer, champion: bool
) -> dict[str, Any]:
    """What the whole will take, going by the uncompiled program's evaluations. Costs are in picodollars.

    `champion`: whether the proof compares with one.
    """
    first = _first_figures(gateway, uncompiled)
    split = job.split
    programs = 1 + DEARER * (2 if champion else 1)
    after = DEARER * len(split.validation) + programs * len(split.test)
    evaluations = len(split.validation) + DEARER * optimizer.expected + after
    each_cost, each_calls = first["cost"], first["calls"]
    priced = all(teacher.price is not None for teacher in job.teachers.values())
    return {
        "evaluations": optimizer.expected,
        "cost": each_cost * evaluations if priced else None,
        "calls": each_calls * evaluations,
        "proof_cost": each_cost * after,
        "proof_calls": each_calls * after,
        "spent": gateway.recorder.budget.spent,
        "spent_then": first["spent"],
        "calls_then": first["all_calls"],
    }


def without_the_proof(caps: Caps, seconds: float | None, estimate: Mapping[str, Any]) -> tuple[Caps, float | None]:
    """The caps less what the proof will need of them, by an `estimate` made above."""
    cost, calls = caps.max_cost, caps.max_calls
    if cost is not None:
        cost -= int(min(1.1 * estimate["proof_cost"], MOST_HELD_BACK * max(0, cost - estimate["spent_then"])))
    if calls is not None:
        calls -= int(min(1.1 * estimate["proof_calls"], MOST_HELD_BACK * max(0, calls - estimate["calls_then"])))
    return Caps(cost, calls), None if seconds is None else 0.75 * seconds


def _first_figures(gateway: Gateway, uncompiled: Trial) -> dict[str, float]:
    """What an evaluation of the uncompiled program cost, on the first start: later ones go by the same figures, so
    that the same part of the caps stays kept back for the proof."""
    if (known := gateway.read(lambda ledger: ledger.meta("first"))) is not None:
        return dict(known)
    done = max(1, len(uncompiled.scores.get("validation", {})))
    budget = gateway.recorder.budget
    figures = {
        "cost": uncompiled.cost / done,
        "calls": _calls(gateway, uncompiled.digest) / done,
        "spent": budget.spent,
        "all_calls": budget.calls,
    }
    if not gateway.reached:
        gateway.read(lambda ledger: ledger.set_meta(first=figures))
    return figures


def _calls(gateway: Gateway, candidate: str) -> int:
    query = "SELECT count(*) FROM calls WHERE item=?"
    return int(gateway.read(lambda ledger: ledger.db.execute(query, (candidate,)).fetchone()[0]))
