"""What the whole compile will take, judging by its first evaluations, and how much of the caps the proof needs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.candidates import Candidate
from refed_dspy.ledger.history import count_calls
from refed_dspy.optimizers.dspy_optimizers import Optimizer
from refed_dspy.optimizers.gateway import Gateway
from refed_dspy.optimizers.spec import CompileSpec
from refed_dspy.records import dollars

log = logging.getLogger("refed_dspy.optimizers")
COST_OF_CANDIDATE = 1.6
"""Cost of a candidate's evaluation over that of the uncompiled program's, which needs no comparison."""
MOST_FOR_PROOF = 0.5
"""At most this share of what is left of a cap is set aside for the proof."""


def estimate_compile(
    spec: CompileSpec, gateway: Gateway, uncompiled: Candidate, optimizer: Optimizer, champion: bool
) -> dict[str, Any]:
    """What the whole will take, judging by the uncompiled program's evaluations. Costs are in picodollars.

    `champion`: whether the proof compares with a champion. `least_cost` and `least_calls`: for the uncompiled program,
    one candidate and their proof.
    """
    baseline = _baseline_figures(gateway, uncompiled)
    split = spec.split
    programs = 1 + COST_OF_CANDIDATE * (2 if champion else 1)
    for_proof = COST_OF_CANDIDATE * len(split.validation) + programs * len(split.test)
    evaluations = len(split.validation) + COST_OF_CANDIDATE * optimizer.expected + for_proof
    each_cost, each_calls = baseline["cost"], baseline["calls"]
    priced = all(teacher.price is not None for teacher in spec.teachers.values())
    return {
        "evaluations": optimizer.expected,
        "cost": each_cost * evaluations if priced else None,
        "calls": each_calls * evaluations,
        "least_cost": each_cost * (len(split.validation) + for_proof) if priced else None,
        "least_calls": each_calls * (len(split.validation) + for_proof),
        "proof_cost": each_cost * for_proof,
        "proof_calls": each_calls * for_proof,
        "spent": gateway.recorder.budget.spent,
        "spent_then": baseline["spent"],
        "calls_then": baseline["all_calls"],
    }


def warn_of_small_caps(caps: Caps, estimate: Mapping[str, Any]) -> None:
    """Say beforehand that a cap may end the compile before there is a proof, and what leaves room for it. Candidates
    that share calls take less."""
    too_little = "%s: %s may be reached before a candidate is proved, which takes about %s; about %s leaves room"
    cost, calls = caps.max_cost, caps.max_calls
    if cost is not None and estimate["least_cost"] is not None and cost < estimate["least_cost"]:
        log.warning(too_little, "max_cost", dollars(cost), dollars(estimate["least_cost"]), dollars(estimate["cost"]))
    if calls is not None and calls < estimate["least_calls"]:
        log.warning(
            too_little, "max_calls", f"{calls:,}", f"{estimate['least_calls']:,.0f}", f"{estimate['calls']:,.0f}"
        )


def caps_before_proof(caps: Caps, seconds: float | None, estimate: Mapping[str, Any]) -> tuple[Caps, float | None]:
    """The caps less what the proof will need, by the result of `estimate_compile`."""
    cost, calls = caps.max_cost, caps.max_calls
    if cost is not None:
        cost -= int(min(1.1 * estimate["proof_cost"], MOST_FOR_PROOF * max(0, cost - estimate["spent_then"])))
    if calls is not None:
        calls -= int(min(1.1 * estimate["proof_calls"], MOST_FOR_PROOF * max(0, calls - estimate["calls_then"])))
    return Caps(cost, calls), None if seconds is None else 0.75 * seconds


def _baseline_figures(gateway: Gateway, uncompiled: Candidate) -> dict[str, float]:
    """What an evaluation of the uncompiled program cost on the first start. Later starts use the same figures, so that
    the same part of the caps stays set aside for the proof."""
    if (recorded := gateway.read(lambda ledger: ledger.meta("first"))) is not None:
        return dict(recorded)
    done = max(1, len(uncompiled.scores.get("validation", {})))
    budget = gateway.recorder.budget
    figures = {
        "cost": uncompiled.cost / done,
        "calls": gateway.read(lambda ledger: count_calls(ledger, uncompiled.digest)) / done,
        "spent": budget.spent,
        "all_calls": budget.calls,
    }
    if not gateway.cap_reached:
        gateway.read(lambda ledger: ledger.set_meta(first=figures))
    return figures
