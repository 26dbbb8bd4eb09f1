"""The forecast of a run: calls, tokens and money of the whole of it, from what its ledger holds so far.

A plain ratio, stage by stage: what a stage took so far, times the units it is still asked about, over those it was
asked about. Units are references (their feedback), synthesis calls, or samples to keep, with all that is dropped or
fails on the way to one. The lengths of all references are known beforehand, and the prompts of those to come are
corrected for them. The interval is Student's, over references: calls about one reference are alike (linearised ratio
estimator). Of a large run only the last samples are looked at, each stage a sample: by then it goes steadily.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refed_dspy.ledger.history import (
    ChargedCalls,
    Usage,
    calls_after,
    calls_in_batches,
    is_proposal,
    last_call_about,
    open_instructions_by_reference,
    reference_numbers,
    samples_after,
    sums_of_usage,
    unpriced_calls,
)
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import settings_of
from refed_dspy.ledger.spending import spent
from refed_dspy.records import PICO, Rates, Reference
from refed_dspy.runs.plan import PlanSettings
from refed_dspy.runs.stage_weights import StageWeights

CONFIDENCE = 0.9
LARGE, RECENT = 10_000, 5_000
"""Samples from which a run counts as large, and those of it that are looked at."""
UNMODELLED = 0.03
"""Standard deviation, as a share, of what all this leaves out: calls in flight when the target fills, what synthesis
gives, later rounds."""
TOKENS_A_CHARACTER = 0.25
"""What a character of a reference costs in tokens."""
STUDIES = "instruction_feedback", "response_feedback", "reference_criteria"
SYNTHESIS, RESPONSE, PLAIN_ANSWER = "instruction_synthesis", "response_generation", "plain_answer"
Units = Mapping[str, Mapping[int, float]]
"""Unit → reference → how many."""


@dataclass(frozen=True)
class Forecast:
    """What the whole run will take; its cost is with `CONFIDENCE` between `low` and `high`. Money in dollars; None:
    unknown."""

    size: int
    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: float | None
    low: float | None
    high: float | None
    spent: float
    """Already, and finally: what is reserved for calls that wait in a batch is still to come."""
    seconds: float
    """The teacher's time still to come, summed over all calls: divided by the calls in flight at once, the time to
    wait."""
    calls_to_come: int
    tokens_to_come: tuple[float, float, float]
    """Prompt, of it cached, and completion."""
    spread: float
    """Half the interval's width as a share of what is still to come; 1 where it cannot be estimated."""
    references: int
    """How many it is based on: those that gave samples."""

    def at(self, rates: Rates) -> tuple[float, float, float]:
        """Dollars: cost, low and high of as many tokens at other rates, from the first call on."""
        prompt, cached, completion = self.tokens_to_come
        whole = rates.cost(self.prompt_tokens, self.cached_tokens, 0, self.completion_tokens)
        ahead = rates.cost(prompt, cached, 0, completion)
        low, high = _interval(ahead, self.spread)
        return whole / PICO, (whole - ahead + low) / PICO, (whole - ahead + high) / PICO


def as_facts(prediction: Forecast | None) -> dict[str, Any] | None:
    """The forecast in JSON types, dollars as numbers."""
    if prediction is None:
        return None
    names = ("size", "calls", "prompt_tokens", "completion_tokens", "cost", "low", "high")
    return {**{name: getattr(prediction, name) for name in names}, "confidence": CONFIDENCE}


def _interval(ahead: float, spread: float) -> tuple[float, float]:
    """The same ratio on both sides: the low bound is never zero or below."""
    return ahead / (1 + spread), ahead * (1 + spread)


@dataclass
class _Stage:
    """What was asked in one stage: `usage` by who answered; and by reference its calls, and what they cost."""

    usage: dict[str, Usage] = field(default_factory=dict)
    calls: Counter[int] = field(default_factory=Counter)
    cost: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    unit: str = "sample"
    """What it is asked about: a `reference`, a `synthesis` call, or a `sample`."""

    def to_come(self, factor: float, longer: float) -> dict[str, Usage]:
        """Who answers → `factor` times as much, with prompts that are `longer` by so many tokens."""
        return {answerer: _longer(took, longer).times(factor) for answerer, took in self.usage.items()}


def _longer(took: Usage, tokens: float) -> Usage:
    """Of a shorter prompt no more than all of it comes from the cache."""
    prompt = max(0.0, took.prompt + took.calls * tokens)
    return took._replace(prompt=prompt, cached=min(prompt, took.cached))


def forecast(
    ledger: Ledger, size: int | None = None, per_reference: int | None = None, weights: StageWeights | None = None
) -> Forecast | None:
    """The forecast for `size` samples, or None where too little was made to base one on.

    Where size, samples a reference, or who answers at what rates are None, those that the run's folder remembers are
    used.
    """
    weights, kept, size = weights or StageWeights.read(ledger), ledger.kept(), size or int(ledger.meta("size"))
    if not kept:
        return None
    before = kept - RECENT if kept >= LARGE else 0
    gave, references = Counter(samples_after(ledger, before)), [] if before else ledger.references()
    stages = _stages(ledger, last_call_about(ledger, before) if before else 0, weights)
    made: Units
    coming: Units
    if before:
        made, coming = {"sample": gave}, {"sample": {index: (size - kept) / len(gave) for index in gave}}
        for stage in stages.values():
            stage.unit = "sample"
        so_far = Usage.total(sums_of_usage(ledger))
    else:
        made, coming = _units(ledger, gave, _plan_settings(ledger, len(references), size, per_reference))
        so_far = Usage.total(took for stage in stages.values() for took in stage.usage.values())
    if size <= kept:
        coming = {unit: {} for unit in made}
    return _forecast(ledger, size, so_far, _rest(stages, made, coming, references, weights), weights, len(gave))


def _forecast(
    ledger: Ledger, size: int, so_far: Usage, rest: _Rest, weights: StageWeights, references: int
) -> Forecast:
    settled = settled_charges(charged(ledger, weights), waiting_calls(ledger, weights), rest.calls)
    whole, ahead, cost, low, high = Usage.total([so_far, rest.usage]), rest.usage, None, None, None
    if weights.priced:
        cost, low, high = ((settled + more) / PICO for more in (rest.cost, *_interval(rest.cost, rest.spread)))
    return Forecast(
        size=size,
        calls=round(whole.calls),
        prompt_tokens=round(whole.prompt),
        cached_tokens=round(whole.cached),
        completion_tokens=round(whole.completion),
        cost=cost,
        low=low,
        high=high,
        spent=settled / PICO,
        seconds=ahead.seconds,
        calls_to_come=round(ahead.calls),
        tokens_to_come=(ahead.prompt, ahead.cached, ahead.completion),
        spread=rest.spread,
        references=references,
    )


def _plan_settings(ledger: Ledger, references: int, size: int, per_reference: int | None) -> PlanSettings:
    """The plan's settings as the run's folder remembers them."""
    identity = ledger.meta("identity")
    return PlanSettings(
        size=size,
        references=references,
        features=tuple(identity["features"]),
        instructions_per_feature=identity["instructions_per_feature"],
        per_reference=per_reference or settings_of(ledger).values.get("per_reference"),
        seed=ledger.meta("seed"),
    )


def _stages(ledger: Ledger, after: int, weights: StageWeights) -> dict[str, _Stage]:
    """What each stage took in the calls after one call's number."""
    numbers, stages = reference_numbers(ledger), defaultdict[str, _Stage](_Stage)
    for name, item, instruction_of, model, endpoint, usage in calls_after(ledger, after):
        stage, answerer, about = stages[name], weights.answerer_of(name, model, endpoint), item.partition("/")[0]
        if instruction_of is None and about in numbers:
            stage.unit = "synthesis" if is_proposal(item) else "reference"
        reference = numbers.get(about, -1) if instruction_of is None else instruction_of
        stage.usage[answerer] = Usage.total([stage.usage.get(answerer, Usage()), usage])
        stage.calls[reference] += int(usage.calls)
        stage.cost[reference] += weights.cost(answerer, usage)
    return stages


def _units(ledger: Ledger, gave: Counter[int], settings: PlanSettings) -> tuple[Units, Units]:
    """The units made and those to come: from what synthesis calls gave, and from the share of instructions kept."""
    proposals, ready = ledger.proposals(), open_instructions_by_reference(ledger)
    asked, new = Counter(reference for reference, *_ in proposals), sum(new for *_, new in proposals)
    success = min(1.0, gave.total() / max(1, new - sum(ready.values())))
    a_call = max(0.1, new / max(1, len(proposals)) * success)
    used = settings.to_come(gave.total(), len(asked)).used
    if settings.per_reference is not None:
        calls = min(len(settings.features), -(-settings.per_reference // settings.instructions_per_feature))
        each = min(settings.per_reference, calls * a_call)
        used = max(len(asked), min(settings.references, math.ceil(settings.size / each)))
    fresh = [index for index in settings.order(0, settings.references) if index not in asked][: used - len(asked)]
    left = {index: max(0.0, settings.size / used - gave[index]) for index in (*asked, *fresh)}
    still = (settings.size - gave.total()) / (sum(left.values()) or 1.0)
    coming: Units = {
        "reference": dict.fromkeys(fresh, 1.0),
        "synthesis": {
            index: math.ceil(max(0.0, still * share / a_call - ready.get(index, 0) * success / a_call))
            for index, share in left.items()
        },
        "sample": {index: still * share for index, share in left.items()},
    }
    return {"reference": dict.fromkeys(asked, 1), "synthesis": asked, "sample": gave}, coming


def _lengths(stage: str, references: Sequence[Reference]) -> dict[int, float]:
    """How much of each reference is in a stage's prompt, in tokens (signatures/)."""
    response, instruction = stage in {*STUDIES, RESPONSE}, stage in {*STUDIES, RESPONSE, SYNTHESIS, PLAIN_ANSWER}
    return {
        index: TOKENS_A_CHARACTER * (instruction * len(each.instruction) + response * len(each.response))
        for index, each in enumerate(references)
    }


def _mean(values: Mapping[int, float], weights: Mapping[int, float]) -> float:
    """The mean of `values`, each as often as its weight says."""
    known = {index: weight for index, weight in weights.items() if index in values}
    return sum(values[index] * weight for index, weight in known.items()) / (sum(known.values()) or 1.0)


@dataclass
class _Rest:
    """What is still to come: `usage`, picodollars, calls by stage, and half the interval as a share of it."""

    usage: Usage
    cost: float
    calls: Mapping[str, float]
    spread: float


def _rest(
    stages: Mapping[str, _Stage], made: Units, coming: Units, references: Sequence[Reference], weights: StageWeights
) -> _Rest:
    """What the units to come take, and an interval from how references differ."""
    took, cost, calls = Usage(), 0.0, dict[str, float]()
    expected, residuals = 0.0, defaultdict[int, float](float)
    for name, stage in stages.items():
        units, lengths = made[stage.unit], _lengths(name, references)
        many, length = sum(units.values()) or 1.0, _mean(lengths, stage.calls)
        factor, mean = sum(coming[stage.unit].values()) / many, sum(stage.cost.values()) / many
        usage = stage.to_come(factor, _mean(lengths, coming[stage.unit]) - length)
        took, calls[name] = Usage.total([took, *usage.values()]), sum(each.calls for each in usage.values())
        cost += weights.price(name, usage)
        expected += factor * mean * many
        for index, paid in stage.cost.items():
            longer = stage.calls[index] * (lengths.get(index, length) - length)
            residuals[index] += factor * (paid - weights.prompt_price(name) * longer - mean * units.get(index, 0))
    return _Rest(took, cost, calls, _spread(residuals.values(), expected, len(coming["sample"])))


def _spread(residuals: Collection[float], total: float, to_come: int) -> float:
    """Half the interval, as a share of what is to come.

    With m units of a stage made and c to come, and y what a reference's u units cost, corrected for its length:

        T = sum over stages of c / m · (sum of y)               what is expected to come
        e = sum over stages of c / m · (y - u · sum of y / m)   the residual of one of n references
        V = n / (n - 1) · (sum of e²) · (1 + n / N)             the variance of T

    V is that of the linearised ratio estimator, n / N for the N references to come, which differ as much among
    themselves. The result is t · sqrt(V / T² + UNMODELLED²), with Student's t for n references.
    """
    from scipy.special import stdtrit

    n = len(residuals)
    if total <= 0:
        return 0.0
    if n < 2:
        return 1.0
    variance = n / (n - 1) * sum(residual**2 for residual in residuals) * (1 + n / max(1, to_come))
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / total**2 + UNMODELLED**2)


def charged(ledger: Ledger, weights: StageWeights) -> int:
    """Picodollars charged so far, including calls that wait in a batch."""
    return spent(ledger).picodollars + round(sum(_cost(calls, weights) for calls in unpriced_calls(ledger)))


def waiting_calls(ledger: Ledger, weights: StageWeights) -> dict[str, tuple[int, float]]:
    """Stage → calls that wait in a batch, or whose answers do, and what they are charged."""
    waiting: dict[str, tuple[int, float]] = {}
    for calls in calls_in_batches(ledger):
        count, cost = waiting.get(calls.stage, (0, 0.0))
        waiting[calls.stage] = count + calls.calls, cost + _cost(calls, weights)
    return waiting


def settled_charges(charged: int, waiting: Mapping[str, tuple[int, float]], coming: Mapping[str, float]) -> int:
    """Picodollars `charged`, without calls in batches whose questions are among those `coming` (stage → how many):
    the forecast of what is still to come covers these."""
    covered = 0.0
    for stage, (count, cost) in waiting.items():
        covered += min(1.0, coming.get(stage, 0.0) / count) * cost
    return charged - round(covered)


def _cost(calls: ChargedCalls, weights: StageWeights) -> float:
    """What the calls cost. Those made at an unknown price are priced at the rates known now, if there are any."""
    rates = weights.rates_for(weights.answerer_of(calls.stage, calls.model, calls.endpoint))
    return calls.cost + (rates.cost(calls.prompt, calls.cached, 0, calls.completion) if rates is not None else 0)
