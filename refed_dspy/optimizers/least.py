"""The least that a compile takes, worked out before any call: lower caps are refused, and an amount that is enough is
named."""

from __future__ import annotations

from dataclasses import dataclass

from refed_dspy.errors import ConfigError
from refed_dspy.optimizers.estimate import COST_OF_CANDIDATE
from refed_dspy.optimizers.spec import CompileSpec
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.judges import INSTRUCTION_CRITERIA
from refed_dspy.records import PICO, dollars
from refed_dspy.teachers import Teacher

LEAST_TOKENS = 250, 40
"""Tokens that a call reads and writes, set low: a cap that they refuse would be reached for sure."""
USUAL_TOKENS = 900, 450
"""The same, set high (docs/how-to/costs.md has the usual ones): the amount that is named must be enough, and not be
found too small by `estimate.warn_of_small_caps` once the first calls are measured."""


@dataclass(frozen=True)
class Calls:
    """Calls of one evaluation by the role that answers them."""

    teacher: int
    judge: int = 0

    @property
    def total(self) -> int:
        return self.teacher + self.judge


def refuse_small_caps(spec: CompileSpec) -> None:
    """Raises ConfigError for a cap in calls or dollars that cannot do for one candidate and its proof: its evaluation
    on the validation set, and the uncompiled program's, and those of both on the test set."""
    settings, sets = spec.settings, spec.split.sets
    pairs = len(sets["validation"]) + len(sets["test"])
    plain, candidate = _calls(spec)
    usual = pairs + COST_OF_CANDIDATE * (spec.expected_evaluations + pairs)
    at_least = "one candidate and its proof take"
    would_do = f"leaves room for {settings.optimizer} with evaluations: {settings.evaluations}, and the proof; raise "
    would_do += "it or lower evaluations, validation and test"
    calls = pairs * (plain.total + candidate.total)
    if settings.max_calls is not None and settings.max_calls < calls:
        raise ConfigError(
            f"max_calls: {settings.max_calls:,} is too few: {at_least} at least {calls:,}; about "
            f"{usual * plain.total:,.0f} {would_do}"
        )
    cost = pairs * (_cost(spec, plain, LEAST_TOKENS) + _cost(spec, candidate, LEAST_TOKENS))
    if settings.max_cost is not None and settings.max_cost * PICO < cost:
        raise ConfigError(
            f"max_cost: {dollars(settings.max_cost * PICO)} is too little: {at_least} at least about {dollars(cost)}; "
            f"about {dollars(usual * _cost(spec, plain, USUAL_TOKENS))} {would_do}"
        )


def _calls(spec: CompileSpec) -> tuple[Calls, Calls]:
    """Calls of one evaluation of the uncompiled program; and the fewest of a candidate's, which shares all it can."""
    program, metric = spec.student, spec.settings.metric
    if isinstance(program, ReferenceLevelFeedback):
        samples = len(program.features) * program.instructions_per_feature
        each_reference = 1 + len(program.features) + ("response_feedback" in program.stage_names)
        criteria = len(INSTRUCTION_CRITERIA if metric.criteria is None else metric.criteria)
        asked = each_reference + samples * int(program.calls_a_sample)
        if spec.metric is not None:  # the caller's own, which may ask nobody
            return Calls(asked), Calls(samples)
        # Only its last stage may be new; the judge compares that in both orders.
        return Calls(asked, samples * criteria), Calls(samples, 2 * samples)
    each = Calls(2 if isinstance(program, PairwiseJudge) else 1)
    return each, each


def _cost(spec: CompileSpec, calls: Calls, tokens: tuple[int, int]) -> float:
    """Picodollars of these calls; a model whose price is unknown counts for nothing."""
    by_role = {"teacher": calls.teacher, "judge": calls.judge}
    return sum(count * _cost_of_call(spec.teachers[role], *tokens) for role, count in by_role.items())


def _cost_of_call(model: Teacher, read: int, written: int) -> int:
    return 0 if model.price is None else model.price.cost(read, 0, 0, written)
