"""The forecast of a run: calls, tokens and money of the whole of it, from what its ledger holds so far.

The plan itself is simulated to its end several times, without a teacher. That gives how many calls of each stage are
still to come and for which references. What a call of a stage takes is the mean over those made, corrected for the
length of the reference in its prompt: the lengths of all references are known beforehand. The interval is Student's,
over references: calls about one reference are alike, so references are the units of the sample (linearised ratio
estimator).
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from refed_dspy.ledger.history import Usage
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import settings_of
from refed_dspy.records import PICO, Rates
from refed_dspy.runs.history import Kind, RunHistory, StageQuestion, charged, settled_charges, waiting_calls
from refed_dspy.runs.plan import PlanSettings
from refed_dspy.runs.playout import Simulation
from refed_dspy.runs.recent import ENOUGH, RecentUse
from refed_dspy.runs.stage_weights import StageWeights

CONFIDENCE = 0.9
MIN_SIMULATIONS, MAX_SIMULATIONS = 3, 8
"""How often the plan is simulated: what fails and what synthesis gives is drawn anew each time. A simulation takes a
tenth of a millisecond a sample, and those of large runs differ less."""
UNMODELLED = 0.015
"""Standard deviation, as a share, of what all this leaves out: calls in flight when the target fills, later rounds."""
TOKENS_A_CHARACTER = 0.25
"""What a character of a reference is expected to cost in tokens, before any call was made."""


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


def _interval(ahead: float, spread: float) -> tuple[float, float]:
    """The same ratio on both sides: the low bound is never zero or below."""
    return ahead / (1 + spread), ahead * (1 + spread)


def forecast(
    ledger: Ledger, size: int | None = None, per_reference: int | None = None, weights: StageWeights | None = None
) -> Forecast | None:
    """The forecast for `size` samples, or None where too little was made to base one on.

    Where size, samples a reference, or who answers at what rates are None, those that the run's folder remembers are
    used.
    """
    weights = weights or StageWeights.read(ledger)
    if ledger.kept() >= ENOUGH:
        return _from_recent(ledger, size or int(ledger.meta("size")), weights)
    history = RunHistory.read(ledger, weights)
    if not history.references_with_samples:
        return None
    settings = _plan_settings(ledger, len(history.references), size, per_reference)
    missing = max(1, settings.size - history.kept)
    count = max(MIN_SIMULATIONS, min(MAX_SIMULATIONS, 20_000 // missing))
    rngs = (random.Random(f"{settings.seed}/{i}") for i in range(count))
    return _from_simulations(settings.size, history, [Simulation(history, settings, rng).run() for rng in rngs])


def _plan_settings(ledger: Ledger, references: int, size: int | None, per_reference: int | None) -> PlanSettings:
    """The plan's settings as the run's folder remembers them."""
    identity = ledger.meta("identity")
    return PlanSettings(
        size=size or ledger.meta("size"),
        references=references,
        features=tuple(identity["features"]),
        instructions_per_feature=identity["instructions_per_feature"],
        per_reference=per_reference or settings_of(ledger).values.get("per_reference"),
        seed=identity["seed"],
    )


def _from_simulations(size: int, history: RunHistory, simulations: Sequence[Sequence[StageQuestion]]) -> Forecast:
    """The mean of the simulations, and an interval from how they differ and from how references differ."""
    groups, slope, weights = _by_kind(history.made), _slope(history.made), history.weights
    usages = [
        {kind: _expected(groups, kind, questions, slope) for kind, questions in _by_kind(simulation).items()}
        for simulation in simulations
    ]
    rest = Usage.total(Usage.total(usage.values()) for usage in usages).times(1 / len(usages))
    whole = Usage.total([*(question.usage for question in history.made), rest])
    costs = [sum(weights.cost(kind.answerer, took) for kind, took in usage.items()) for usage in usages]
    ahead = fmean(costs)
    deviation = stdev(costs) / ahead if ahead else 0.0
    spread = _spread(groups, _by_kind(simulations[0]), slope, weights, deviation)
    settled = history.settled(_questions_to_come(simulations))
    return _forecast(size, whole, rest, settled, ahead, spread, weights.priced, history.references_with_samples)


def _from_recent(ledger: Ledger, size: int, weights: StageWeights) -> Forecast:
    """As the last samples of a large run went."""
    recent, missing = RecentUse.read(ledger, weights), max(0, size - ledger.kept())
    rest = recent.used.times(missing / recent.samples)
    coming = {stage: calls * missing for stage, calls in recent.stages.items()}
    settled = settled_charges(charged(ledger, weights), waiting_calls(ledger, weights), coming)
    spread = recent.spread(UNMODELLED, CONFIDENCE)
    whole = Usage.total([recent.whole, rest])
    return _forecast(size, whole, rest, settled, recent.ahead * missing, spread, weights.priced, recent.samples)


def _forecast(
    size: int, whole: Usage, rest: Usage, settled: int, ahead: float, spread: float, priced: bool, references: int
) -> Forecast:
    cost = low = high = None
    if priced:
        cost, low, high = ((settled + to_come) / PICO for to_come in (ahead, *_interval(ahead, spread)))
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
        seconds=rest.seconds,
        calls_to_come=round(rest.calls),
        tokens_to_come=(rest.prompt, rest.cached, rest.completion),
        spread=spread,
        references=references,
    )


def _questions_to_come(simulations: Sequence[Sequence[StageQuestion]]) -> dict[str, float]:
    """Stage → questions still to ask, on average."""
    counts = Counter(question.stage for simulation in simulations for question in simulation)
    return {stage: count / len(simulations) for stage, count in counts.items()}


def _by_kind(questions: Iterable[StageQuestion]) -> dict[Kind, list[StageQuestion]]:
    kinds: defaultdict[Kind, list[StageQuestion]] = defaultdict(list)
    for question in questions:
        kinds[question.kind].append(question)
    return kinds


def _expected(
    groups: Mapping[Kind, Sequence[StageQuestion]], kind: Kind, coming: Sequence[StageQuestion], slope: float
) -> Usage:
    """What `coming` will take: each the mean of those made, with a prompt that is longer by as much as its references
    are longer.

    Where who answers was not asked in that stage yet, the mean is taken over the stage, or over all questions.
    """
    everything = [question for questions in groups.values() for question in questions]
    made = groups.get(kind) or [question for question in everything if question.stage == kind.stage] or everything
    mean = Usage.total(question.usage for question in made).times(1 / len(made))
    longer = fmean(question.characters for question in coming) - fmean(question.characters for question in made)
    prompt = max(0.0, mean.prompt + slope * longer * max(1.0, mean.calls))
    # Of a shorter prompt no more than all of it comes from the cache.
    return mean._replace(prompt=prompt, cached=min(prompt, mean.cached)).times(len(coming))


def _slope(made: Sequence[StageQuestion]) -> float:
    """Tokens a character of the references: least squares within stages, shrunk towards what is expected of any text.

    The ridge counts as much as one reference 200 characters away from the mean.
    """
    above, below = TOKENS_A_CHARACTER * 200.0**2, 200.0**2
    for questions in _by_kind(made).values():
        x = [question.characters for question in questions]
        y = [question.usage.prompt / max(1.0, question.usage.calls) for question in questions]
        mean_x, mean_y = fmean(x), fmean(y)
        above += sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
        below += sum((a - mean_x) ** 2 for a in x)
    return above / below


def _spread(
    groups: Mapping[Kind, Sequence[StageQuestion]],
    simulated: Mapping[Kind, Sequence[StageQuestion]],
    slope: float,
    weights: StageWeights,
    deviation: float,
) -> float:
    """Half the interval, as a share of what is to come.

    With m questions of a kind made and c to come, and y what a question cost, corrected for its reference's length:

        T = sum over kinds of c / m · (sum of y)                                what is expected to come
        e = sum over kinds of c / m · (sum over its questions of y - mean y)    the residual of one of n references
        V = n / (n - 1) · (sum of e²) · (1 + n / N)                             the variance of T

    V is that of the linearised ratio estimator, n / N for the N references to come, which differ as much among
    themselves. The result is t · sqrt(V / T² + deviation² + UNMODELLED²), with Student's t for n references and
    `deviation`, the standard deviation of the simulations as a share.
    """
    from scipy.special import stdtrit

    total = 0.0
    residuals: defaultdict[int, float] = defaultdict(float)
    for kind, coming in simulated.items():
        if not (made := groups.get(kind, ())):
            continue
        weight = len(coming) / len(made)
        length = fmean(question.characters for question in made)
        a_character = weights.rates_or_weights(kind.answerer).prompt * slope
        costs = [weights.cost(kind.answerer, q.usage) - a_character * (q.characters - length) for q in made]
        mean = fmean(costs)
        total += weight * sum(costs)
        for question, cost in zip(made, costs, strict=True):
            residuals[question.reference] += weight * (cost - mean)
    if total <= 0:
        return 0.0
    n, to_come = len(residuals), len({question.reference for coming in simulated.values() for question in coming})
    if n < 2:
        return 1.0
    variance = n / (n - 1) * sum(residual**2 for residual in residuals.values()) * (1 + n / to_come)
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / total**2 + deviation**2 + UNMODELLED**2)


def as_facts(prediction: Forecast | None) -> dict[str, Any] | None:
    """The forecast in JSON types, dollars as numbers."""
    if prediction is None:
        return None
    facts: dict[str, Any] = {
        name: getattr(prediction, name) for name in ("size", "calls", "prompt_tokens", "completion_tokens")
    }
    return {**facts, "cost": prediction.cost, "low": prediction.low, "high": prediction.high, "confidence": CONFIDENCE}
