"""What a compile takes: by its sizes before any call, and by its first evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from refed_dspy.errors import ConfigError
from refed_dspy.jobs.gateway import Gateway
from refed_dspy.jobs.work import budget_caps, caps_of
from refed_dspy.ledger.candidates import Candidate
from refed_dspy.ledger.history import count_calls
from refed_dspy.optimizers.spec import SECOND, CompileSpec
from refed_dspy.programs.judges import INSTRUCTION_CRITERIA
from refed_dspy.records import PICO, dollars
from refed_dspy.text import format_number


@dataclass(frozen=True)
class Amount:
    """What work takes: picodollars and calls, or both as shares of what the uncompiled program takes an evaluation."""

    cost: float
    calls: float

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.cost + other.cost, self.calls + other.calls)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.cost - other.cost, self.calls - other.calls)

    def __mul__(self, other: Amount) -> Amount:
        return Amount(self.cost * other.cost, self.calls * other.calls)

    def times(self, count: float) -> Amount:
        """So many of it."""
        return Amount(self.cost * count, self.calls * count)


COMPARED = Amount(1.6, 1.3)
"""Of a program that shares no call, where the metric compares answers: the judge also compares its answers with the
uncompiled program's."""
ALONE = Amount(1, 1)
"""The same where the metric compares nothing."""
COMPARED_AGAIN = Amount(2.5, 1.5)
"""Of what a judge takes to grade the uncompiled program's samples, where it also compares those of another."""
PAID = {
    "bootstrap": Amount(1.2, 0.8),
    "gepa": Amount(0.8, 0.6),
    "mipro": Amount(1.2, 1.0),
    "variants": ALONE,
    "simba": Amount(0.7, 0.6),
}
"""Of that, what one of an optimizer's evaluations takes on average (`python -m benchmarks.compile_costs`): GEPA and
SIMBA score programs again and change few stages at a time, so much was asked before; demonstrations make prompts
longer. Other optimizers: all of it."""
LEAST_FORESEEN = 0.8
"""A proof is never foreseen to take less than this share of what was foreseen before, few evaluations being few."""
PROPOSALS, OF_PROPOSAL = 19, (5_000, 50)
"""Calls of the reflection model with which MIPRO begins, for each predictor, and the tokens that one reads and writes.
What the others ask of it is in PAID."""
a_count = partial(format_number, digits=0)
"""A number of calls or evaluations, for people."""
LEEWAY = 1.25
"""What is named as enough is so many times what is expected."""
FEW_TOKENS = 250, 40
"""Tokens that a call of a program of unknown kind is taken to read and write: few, so that no cap is refused that would
do."""


def _tuning_and_proof(
    spec: CompileSpec, evaluations: Mapping[str, float], champion: bool = False
) -> tuple[Amount, Amount]:
    """A compile's work in evaluations of the uncompiled program: its own and the tuning's, and the proof's.

    `evaluations`: each optimizer's. `champion`: whether the proof compares with a champion, too.
    """
    each = _each(spec)
    tuning = ALONE.times(len(spec.split.validation))
    for name, count in evaluations.items():
        tuning += (PAID.get(name, ALONE) * each).times(count)
    dearest = max([1.0, *(PAID[name].cost for name in evaluations if name in PAID)])  # with demonstrations, say
    compared = each * Amount(dearest, 1)
    return tuning, (ALONE + compared.times(2 if champion else 1)).times(_held_out(spec))


def _each(spec: CompileSpec) -> Amount:
    return COMPARED if spec.compares else ALONE


def _held_out(spec: CompileSpec) -> int:
    """How many examples the proof scores."""
    return len(spec.split.test) if spec.settings.prove else 0


def _asked_of_second(spec: CompileSpec, champion: bool = False) -> Amount:
    """What the proof asks of the second judge, by the program's stages and the references' lengths."""
    if SECOND not in spec.teachers:
        return Amount(0, 0)
    cost, calls = _of_role(spec, SECOND)
    return (Amount(cost, calls) * (ALONE + COMPARED_AGAIN.times(2 if champion else 1))).times(_held_out(spec))


def _proposals(spec: CompileSpec) -> Amount:
    """What the optimizer begins with; a model whose price is unknown counts for nothing."""
    if "mipro" not in spec.tuned_by:
        return Amount(0, 0)
    price, calls = spec.teachers["reflection"].price, PROPOSALS * len(spec.program_identity["program"])
    read, written = OF_PROPOSAL
    return Amount(0 if price is None else calls * price.cost(read, 0, 0, written), calls)


# --- before any call


def refuse_small_caps(spec: CompileSpec) -> None:
    """Raises ConfigError for a cap in calls or dollars below what the compile is expected to take with its proof. Of an
    optimizer of unknown size: with one candidate. Also as `budget_caps`."""
    settings, foreseen, what = spec.settings, expected(spec), _what(spec)
    budget_caps(spec.teachers, caps_of(settings))
    cost = None if settings.max_cost is None else settings.max_cost * PICO
    for name, cap, takes, said, few in (
        ("max_calls", settings.max_calls, foreseen.calls, a_count, "few"),
        ("max_cost", cost, foreseen.cost, dollars, "little"),
    ):
        if cap is not None and cap < takes:
            or_lower = "" if what == "the test" else ", or lower evaluations, validation and test"
            raise ConfigError(
                f"{name}: {said(cap)} is too {few}: {what} {'takes' if not or_lower else 'take'} about {said(takes)}; "
                f"raise it to {said(with_room(takes))}{or_lower}"
            )


def _what(spec: CompileSpec) -> str:
    """What is foreseen, in words."""
    if "variants" in spec.tuned_by:
        return "the test"
    sized = f"{spec.settings.optimizer} with evaluations: {spec.settings.evaluations}"
    return f"{sized if {*spec.tuned_by} <= {*PAID} else 'one candidate'}{' and its proof' * spec.settings.prove}"


def outlook(spec: CompileSpec) -> str:
    """What the whole compile is foreseen to take, in a line."""
    foreseen = expected(spec)
    priced = f", {dollars(foreseen.cost)}" if all(each.price is not None for each in spec.teachers.values()) else ""
    return f"{_what(spec)}: about {a_count(foreseen.calls)} calls{priced}"


def expected(spec: CompileSpec) -> Amount:
    """Of a whole compile, by the program's stages and the references' lengths. A model whose price is unknown counts
    for nothing."""
    few = len(spec.split.validation)
    evaluations = {name: count if name in PAID else few for name, count in spec.expected.items()}
    tuning, proof = _tuning_and_proof(spec, evaluations)
    return (tuning + proof) * _one_evaluation(spec) + _proposals(spec) + _asked_of_second(spec)


def _one_evaluation(spec: CompileSpec) -> Amount:
    """What one evaluation of the uncompiled program takes.

    Of references of 600 tokens a call reads, at full price, and writes on average 1,150 and 470 tokens for the teacher,
    350 and 50 for the judge, who grades several short texts of one prompt.
    """
    teacher, judge = (Amount(*_of_role(spec, role)) for role in ("teacher", "judge"))
    return teacher + judge


def _of_role(spec: CompileSpec, role: str) -> tuple[float, float]:
    """The picodollars and calls of one model in that."""
    criteria = spec.settings.metric.criteria
    graded = len(INSTRUCTION_CRITERIA if criteria is None else criteria) if spec.compares else 0
    calls = spec.calls if role == "teacher" else spec.samples * graded
    model, (read, written) = spec.teachers[role], FEW_TOKENS
    if spec.unit == "references":
        references = [example.reference for _, example in spec.split.named_examples()]
        length = fmean(len(f"{each.instruction}{each.response}".encode()) / 4 for each in references)  # bytes a token
        read, written = int(200 + 0.25 * length), 50
        if role == "teacher":
            read, written = int(550 + length), int(50 + 0.7 * length)
    if model.price is None:
        return 0, calls
    return calls * model.price.cost(read, 0, 0, min(written, model.max_tokens)), calls


# --- by the first evaluations


def estimate_compile(spec: CompileSpec, gateway: Gateway, uncompiled: Candidate, champion: bool) -> dict[str, Any]:
    """What the whole will take, judging by the uncompiled program's evaluations. Costs are in picodollars.

    `champion`: whether the proof compares with a champion.
    """
    first, (tuning, proof) = _first_figures(gateway, uncompiled), _tuning_and_proof(spec, spec.expected, champion)
    each, second = Amount(first["cost"], first["calls"]), _asked_of_second(spec, champion)
    whole, of_proof = (tuning + proof) * each + _proposals(spec) + second, proof * each + second
    priced = all(teacher.price is not None for teacher in spec.teachers.values())
    return {
        "evaluations": spec.expected_evaluations,
        "cost": whole.cost if priced else None,
        "calls": whole.calls,
        "enough_cost": with_room(whole.cost) if priced and whole.cost else None,
        "enough_calls": with_room(whole.calls) if whole.calls else None,
        "proof_cost": of_proof.cost,
        "proof_calls": of_proof.calls,
        "spent": gateway.recorder.budget.spent,
        "spent_then": first["spent"],
        "calls_then": first["all_calls"],
    }


def by_candidate(estimate: Mapping[str, Any], spec: CompileSpec, gateway: Gateway, best: Candidate) -> dict[str, Any]:
    """`estimate` with the proof of `best`, judging by that candidate's own evaluations, which may be few: never less
    than LEAST_FORESEEN of what the estimate says."""
    done, first = sum(map(len, best.scores.values())), gateway.read(lambda ledger: ledger.meta("first"))
    if not done or first is None:
        return dict(estimate)
    each = Amount(best.cost, gateway.read(lambda ledger: count_calls(ledger, best.digest))).times(1 / done)
    proof = (Amount(first["cost"], first["calls"]) + each).times(_held_out(spec)) + _asked_of_second(spec)
    found = {"proof_cost": proof.cost, "proof_calls": proof.calls}
    return {**estimate, **{name: max(value, LEAST_FORESEEN * estimate[name]) for name, value in found.items()}}


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


def with_room(foreseen: float) -> float:
    """What is named as enough where so much is expected, which is above 0: LEEWAY times as much, rounded up to two
    digits."""
    wanted = LEEWAY * foreseen
    step = 10.0 ** (math.floor(math.log10(wanted)) - 1)
    return math.ceil(wanted / step) * step
