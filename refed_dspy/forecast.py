"""What a run will come to, foreseen from what it has come to so far.

The plan itself is played to its end without a teacher, which says how many calls of each stage are still to come and
for which references. What a call of a stage takes is the mean over those made, corrected for the length of the
reference in its prompt: the lengths of all references are known beforehand. The interval is Student's, over references:
calls about one reference are alike, so they are the sample's units (linearised ratio estimator).
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from refed_dspy.engine.accounts import spent
from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.plan import Plan, PlanSettings, Propose, Respond, Study
from refed_dspy.records import Rates, Reference

CONFIDENCE = 0.9
FEW = 2
"""References that must have given samples before anything is foreseen."""
TOKENS_A_CHARACTER = 0.25
"""What a character of a reference is expected to cost in tokens, before any call was made."""
_STUDY = {"features": "instruction_feedback", "response": "response_feedback"}
Numbers: TypeAlias = tuple[float, ...]
_NAMES = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds", "unseen")


@dataclass(frozen=True)
class Unit:
    """One question of a stage, asked or still to be: about which reference, whose text in the prompt has how many
    characters, and what it took (calls, prompt, cached and completion tokens, seconds, picodollars charged unseen)."""

    stage: str
    reference: int
    characters: int
    took: Numbers = ()


@dataclass(frozen=True)
class Forecast:
    """What the whole run comes to, with `CONFIDENCE` between `low` and `high`. Money in picodollars, None: unknown."""

    size: int
    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost: int | None
    low: int | None
    high: int | None
    spent: int
    seconds: float
    """Of teacher's time still to come, over all calls: divided by those in flight at once it is the time to wait."""
    stages: Mapping[str, int]
    """Stage → questions still to ask."""
    spread: float
    """Half the interval's width as a share of the foreseen total."""
    failures: Mapping[str, float] = field(default_factory=dict)

    def at(self, rates: Rates) -> tuple[int, int, int]:
        """Cost, low and high of as many tokens at other rates, from the first call on."""
        cost = round(rates.cost(self.prompt_tokens, self.cached_tokens, 0, self.completion_tokens))
        return cost, round(cost * (1 - self.spread)), round(cost * (1 + self.spread))


def forecast(ledger: Ledger, size: int | None = None, per_reference: int | None = None) -> Forecast | None:
    """The forecast for `size` samples (None: the run's own), or None where too little was made to foresee anything."""
    references = ledger.references()
    made = list(units_made(ledger, references))
    if len({unit.reference for unit in made if unit.stage == "response_improvement"}) < FEW:
        return None
    settings = plan_settings(ledger, len(references), size, per_reference)
    coming = list(units_to_come(ledger, references, settings))
    stored = ledger.meta("rates")
    rates = Rates(*stored) if stored else None
    return _foreseen(settings.size, made, coming, rates, spent(ledger).cost)


def plan_settings(ledger: Ledger, references: int, size: int | None, per_reference: int | None) -> PlanSettings:
    """The plan's settings as the run's folder remembers them."""
    identity = ledger.meta("identity")
    return PlanSettings(
        size=size or ledger.meta("size"),
        references=references,
        features=tuple(identity["features"]),
        instructions_per_feature=identity["instructions_per_feature"],
        per_reference=per_reference or ledger.meta("per_reference"),
        seed=ledger.meta("seed"),
    )


_MADE = """
SELECT stage, item, count(*), total(prompt_tokens), total(cached_tokens), total(completion_tokens), total(seconds),
       total(CASE WHEN prompt_tokens IS NULL AND outcome NOT IN ('lost', 'cancelled') THEN cost END)
FROM calls WHERE outcome NOT IN ('sent', 'lost') GROUP BY key HAVING sum(prompt_tokens IS NOT NULL)
"""


def units_made(ledger: Ledger, references: Sequence[Reference]) -> Iterator[Unit]:
    """Every question that was answered, whatever the answer was worth, with all its calls."""
    position = {reference.id: index for index, reference in enumerate(references)}
    origin = dict(ledger.db.execute("SELECT CAST(id AS TEXT), reference FROM instructions"))
    for stage, item, *took in ledger.db.execute(_MADE):
        index = origin.get(item) if item in origin else position.get(item.partition("/")[0])
        if index is not None:
            yield Unit(stage, index, _characters(stage, references[index]), tuple(took))


def _characters(stage: str, reference: Reference) -> int:
    """How much of the reference stands in a stage's prompt (signatures/)."""
    if stage == "response_improvement":
        return 0
    return len(reference.instruction) + (0 if stage == "instruction_synthesis" else len(reference.response))


def units_to_come(ledger: Ledger, references: Sequence[Reference], settings: PlanSettings) -> Iterator[Unit]:
    """Play the plan to its end: what fails and how much a synthesis call gives is drawn from what happened so far."""
    rng = random.Random(settings.seed)
    answered = set(ledger.db.execute("SELECT stage, item FROM answers"))
    failing = failure_rates(ledger)
    gave = [kept for _, _, _, kept in ledger.proposals()] or [settings.instructions_per_feature]
    numbers = itertools.count(-1, -1)
    plan = Plan(settings)
    plan.restore(ledger.kept(), ledger.proposals(), ledger.used(), ledger.open_instructions())

    def ask(stage: str, index: int, item: str) -> Iterator[Unit]:
        if (stage, item) not in answered:
            yield Unit(stage, index, _characters(stage, references[index]))

    while (unit := plan.next_unit()) is not None:
        index = unit.reference
        match unit:
            case Study():
                stage, item = _STUDY[unit.part], references[index].id
                yield from ask(stage, index, item)
                plan.studied(unit, failed=(stage, item) not in answered and rng.random() < failing[stage])
            case Propose():
                yield from ask("instruction_synthesis", index, "")
                failed = rng.random() < failing["instruction_synthesis"]
                new = 0 if failed else rng.choice(gave)
                plan.proposed(unit, [(next(numbers), "") for _ in range(new)])
            case Respond():
                item = str(unit.instruction)
                yield from ask("response_generation", index, item)
                kept = rng.random() >= failing["response_generation"]
                if kept:
                    yield from ask("response_improvement", index, item)
                    kept = rng.random() >= failing["response_improvement"]
                plan.responded(unit, kept)


def failure_rates(ledger: Ledger) -> Counter[str] | defaultdict[str, float]:
    """Stage → share of its questions that failed for good."""
    done = Counter(dict(ledger.db.execute("SELECT stage, count(*) FROM answers GROUP BY stage")))
    failed = Counter(dict(ledger.db.execute("SELECT stage, count(*) FROM failures GROUP BY stage")))
    rates: defaultdict[str, float] = defaultdict(float)
    rates.update({stage: failed[stage] / (failed[stage] + done[stage]) for stage in failed})
    return rates


def _foreseen(size: int, made: Sequence[Unit], coming: Sequence[Unit], rates: Rates | None, charged: int) -> Forecast:
    groups = {stage: [u for u in made if u.stage == stage] for stage in {unit.stage for unit in coming}}
    wanted = {stage: [u for u in coming if u.stage == stage] for stage in groups}
    slope = _slope(made)
    so_far = _sum(unit.took for unit in made)
    rest = _sum(_expected(groups[stage] or made, wanted[stage], slope) for stage in groups)
    calls, prompt, cached, completion, _, _ = (a + b for a, b in zip(so_far, rest, strict=True))
    spread = _spread(groups, wanted, slope, rates)
    cost = low = high = None
    if rates is not None:
        ahead = _cost(rest, rates)
        cost = charged + round(ahead)
        low, high = (charged + max(0, round(ahead * (1 + sign * spread))) for sign in (-1, 1))
    return Forecast(
        size=size,
        calls=round(calls),
        prompt_tokens=round(prompt),
        cached_tokens=round(cached),
        completion_tokens=round(completion),
        cost=cost,
        low=low,
        high=high,
        spent=charged,
        seconds=rest[4],
        stages={stage: len(units) for stage, units in wanted.items()},
        spread=spread,
    )


def _sum(rows: Iterable[Numbers]) -> Numbers:
    return tuple(map(sum, zip(*rows, strict=True))) or (0.0,) * len(_NAMES)


def _cost(took: Numbers, rates: Rates) -> float:
    _, prompt, cached, completion, _, unseen = took
    return rates.cost(prompt, cached, 0, completion) + unseen


def _expected(made: Sequence[Unit], coming: Sequence[Unit], slope: float) -> Numbers:
    """What `coming` will take: the mean of `made` each, and the prompt longer by what their references are longer."""
    each = [total / len(made) for total in _sum(unit.took for unit in made)]
    longer = _mean(unit.characters for unit in coming) - _mean(unit.characters for unit in made)
    each[1] = max(0.0, each[1] + slope * longer * max(1.0, each[0]))
    return tuple(len(coming) * value for value in each)


def _slope(made: Sequence[Unit]) -> float:
    """Tokens a character of the references: least squares within stages, drawn towards what is expected of any text.

    The ridge counts as much as one reference 200 characters away from the mean.
    """
    above, below = TOKENS_A_CHARACTER * 200.0**2, 200.0**2
    for stage in {unit.stage for unit in made}:
        units = [unit for unit in made if unit.stage == stage]
        calls = [(unit.characters, unit.took[1] / max(1.0, unit.took[0])) for unit in units]
        x, y = _mean(x for x, _ in calls), _mean(y for _, y in calls)
        above += sum((a - x) * (b - y) for a, b in calls)
        below += sum((a - x) ** 2 for a, _ in calls)
    return above / below


def _spread(
    groups: Mapping[str, Sequence[Unit]], wanted: Mapping[str, Sequence[Unit]], slope: float, rates: Rates | None
) -> float:
    """Half the interval as a share of what is to come: from how much references differ from one another."""
    from scipy.stats import t

    rates = rates or Rates(1, 1, 1, 4)  # without a price: tokens, those written counted as usual
    total = 0.0
    off: Counter[int] = Counter()
    targets = {unit.reference for units in wanted.values() for unit in units}
    for stage, units in groups.items():
        if not units:
            continue
        weight = len(wanted[stage]) / len(units)
        mean = _mean(unit.characters for unit in units)
        costs = [_cost(u.took, rates) - rates.prompt * slope * (u.characters - mean) for u in units]
        middle = _mean(costs)
        total += weight * sum(costs)
        for unit, cost in zip(units, costs, strict=True):
            off[unit.reference] += weight * (cost - middle)  # type: ignore[assignment]
    n = len(off)
    if n < 2 or total <= 0:
        return 0.0 if not targets else 1.0
    variance = n / (n - 1) * sum(value**2 for value in off.values()) * (1 + n / max(1, len(targets)))
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(variance) / total


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def as_facts(found: Forecast | None) -> dict[str, Any] | None:
    """The forecast in JSON types, dollars as numbers."""
    if found is None:
        return None
    return {
        "size": found.size,
        "calls": found.calls,
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "cost": _dollars(found.cost),
        "low": _dollars(found.low),
        "high": _dollars(found.high),
        "confidence": CONFIDENCE,
    }


def _dollars(cost: int | None) -> float | None:
    return None if cost is None else cost / 10**12
