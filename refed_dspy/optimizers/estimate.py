"""What the whole compile will take, judging by its first evaluations, and how much of the caps the proof needs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.candidates import Candidate
from refed_dspy.ledger.history import count_calls
from refed_dspy.optimizers.gateway import Gateway
from refed_dspy.optimizers.spec import CompileSpec
from refed_dspy.records import dollars

log = logging.getLogger("refed_dspy.optimizers")
FOR_PROOF = 1.1
"""So many times what a proof is expected to take is kept for it, where there is room."""
MOST_FOR_PROOF = 0.5
"""At most this share of what is left of a cap is set aside for the proof."""


@dataclass(frozen=True)
class Share:
    """What one evaluation takes of what one of the uncompiled program's does: in dollars, and in calls."""

    cost: float
    calls: float


COMPARED = Share(1.6, 1.3)
"""Of a program that shares no call, where the metric compares answers: the judge also compares its answers with the
uncompiled program's."""
ALONE = Share(1, 1)
"""The same where the metric compares nothing."""
PAID = {
    "bootstrap": Share(1.2, 0.8),
    "gepa": Share(0.8, 0.6),
    "mipro": Share(1.2, 1.0),
    "simba": Share(0.7, 0.6),
}
"""Of that, what one of an optimizer's evaluations takes on average (`python -m benchmarks.compile_costs`): GEPA and
SIMBA score programs again and change few stages at a time, so much was asked before; demonstrations make prompts
longer. Other optimizers: all of it."""
PROPOSALS, OF_PROPOSAL = 19, (5_000, 50)
"""Calls of the reflection model with which MIPRO begins, for each predictor, and the tokens that one reads and writes.
What the others ask of it is in PAID."""
LEEWAY = 1.25
"""What is named as enough is so many times what is expected."""


@dataclass(frozen=True)
class Work:
    """A compile's work, in evaluations of the uncompiled program: the uncompiled program's own and the tuning's, and
    the proof's."""

    tuning: Share
    proof: Share

    @classmethod
    def of(cls, spec: CompileSpec, evaluations: int, champion: bool = False) -> Work:
        """`evaluations`: the optimizer's. `champion`: whether the proof compares with a champion, too."""
        validation = len(spec.split.validation)
        test = len(spec.split.test) if spec.settings.prove else 0
        each = COMPARED if spec.compares else ALONE
        paid, programs = PAID.get(spec.settings.optimizer, ALONE), 2 if champion else 1
        return cls(
            Share(validation + paid.cost * each.cost * evaluations, validation + paid.calls * each.calls * evaluations),
            Share((1 + each.cost * programs) * test, (1 + each.calls * programs) * test),
        )

    @property
    def whole(self) -> Share:
        return Share(self.tuning.cost + self.proof.cost, self.tuning.calls + self.proof.calls)


def proposals(spec: CompileSpec) -> Share:
    """Picodollars and calls that the optimizer begins with; a model whose price is unknown counts for nothing."""
    if spec.settings.optimizer != "mipro":
        return Share(0, 0)
    price, calls = spec.teachers["reflection"].price, PROPOSALS * len(spec.program.predictors())
    read, written = OF_PROPOSAL
    return Share(0 if price is None else calls * price.cost(read, 0, 0, written), calls)


def estimate_compile(spec: CompileSpec, gateway: Gateway, uncompiled: Candidate, champion: bool) -> dict[str, Any]:
    """What the whole will take, judging by the uncompiled program's evaluations. Costs are in picodollars.

    `champion`: whether the proof compares with a champion.
    """
    evaluations = spec.expected_evaluations
    first, work = _first_figures(gateway, uncompiled), Work.of(spec, evaluations, champion)
    begun_with = proposals(spec)
    priced = all(teacher.price is not None for teacher in spec.teachers.values())
    return {
        "evaluations": evaluations,
        "cost": first["cost"] * work.whole.cost + begun_with.cost if priced else None,
        "calls": first["calls"] * work.whole.calls + begun_with.calls,
        "proof_cost": first["cost"] * work.proof.cost,
        "proof_calls": first["calls"] * work.proof.calls,
        "spent": gateway.recorder.budget.spent,
        "spent_then": first["spent"],
        "calls_then": first["all_calls"],
    }


def warn_of_small_caps(caps: Caps, estimate: Mapping[str, Any]) -> None:
    """Say beforehand that a cap will end the optimizer early, and what leaves room for all its evaluations."""
    too_little = (
        "%s: %s will end the optimizer before its %s evaluations: with the proof they take about %s; %s leaves room"
    )
    cost, calls, evaluations = caps.max_cost, caps.max_calls, estimate["evaluations"]
    if cost is not None and estimate["cost"] is not None and cost < estimate["cost"]:
        foreseen = estimate["cost"]
        log.warning(too_little, "max_cost", dollars(cost), evaluations, dollars(foreseen), dollars(with_room(foreseen)))
    if calls is not None and calls < estimate["calls"]:
        foreseen = estimate["calls"]
        log.warning(
            too_little, "max_calls", f"{calls:,}", evaluations, f"{foreseen:,.0f}", f"{with_room(foreseen):,.0f}"
        )


def with_room(foreseen: float) -> float:
    """What is named as enough where so much is expected, which is above 0: LEEWAY times as much, rounded up to two
    digits."""
    wanted = LEEWAY * foreseen
    step = 10.0 ** (math.floor(math.log10(wanted)) - 1)
    return math.ceil(wanted / step) * step


def caps_before_proof(caps: Caps, seconds: float | None, estimate: Mapping[str, Any]) -> tuple[Caps, float | None]:
    """The caps less what the proof will need, by the result of `estimate_compile`."""
    cost, calls, proves = caps.max_cost, caps.max_calls, estimate["proof_calls"] > 0
    if cost is not None:
        cost -= int(min(FOR_PROOF * estimate["proof_cost"], MOST_FOR_PROOF * max(0, cost - estimate["spent_then"])))
    if calls is not None:
        calls -= int(min(FOR_PROOF * estimate["proof_calls"], MOST_FOR_PROOF * max(0, calls - estimate["calls_then"])))
    return Caps(cost, calls), 0.75 * seconds if proves and seconds is not None else seconds


def _first_figures(gateway: Gateway, uncompiled: Candidate) -> dict[str, float]:
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
