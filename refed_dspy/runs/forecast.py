"""What a run will come to, foreseen from what it has come to so far.

The plan itself is played to its end without a teacher, some times over, which says how many calls of each stage are
still to come and for which references. What a call of a stage takes is the mean over those made, corrected for the
length of the reference in its prompt: the lengths of all references are known beforehand. The interval is Student's,
over references: calls about one reference are alike, so they are the sample's units (linearised ratio estimator).
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.records import Rates
from refed_dspy.runs.playout import Kind, Numbers, RunHistory, StageShares, Unit, plan_settings

CONFIDENCE = 0.9
PLAYS = (3, 8)
"""How often the plan is played, at least and at most: what fails and what synthesis gives is drawn anew each time. A
play takes a tenth of a millisecond a sample, and long ones differ less."""
UNFORESEEN = 0.015
"""Standard deviation, as a share, of what all this leaves out: calls in flight when the target fills, later rounds."""
TOKENS_A_CHARACTER = 0.25
"""What a character of a reference is expected to cost in tokens, before any call was made."""
_NAMES = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds", "unseen")


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
    """Already, and for good: what is set aside for calls that wait in a batch is still to come."""
    seconds: float
    """Of teacher's time still to come, over all calls: divided by those in flight at once it is the time to wait."""
    calls_to_come: int
    tokens_to_come: tuple[float, float, float]
    """Prompt, of it cached, and completion."""
    spread: float
    """Half the interval's width as a share of what is still to come; 1 where nothing can be said of it."""
    references: int
    """How many it is foreseen from: those that gave samples."""

    def at(self, rates: Rates) -> tuple[int, int, int]:
        """Cost, low and high of as many tokens at other rates, from the first call on."""
        prompt, cached, completion = self.tokens_to_come
        whole = rates.cost(self.prompt_tokens, self.cached_tokens, 0, self.completion_tokens)
        ahead = rates.cost(prompt, cached, 0, completion)
        low, high = _interval(ahead, self.spread)
        return round(whole), round(whole - ahead + low), round(whole - ahead + high)


def _interval(ahead: float, spread: float) -> tuple[float, float]:
    """Alike in ratio on both sides: what is to come cannot cost nothing."""
    return ahead / (1 + spread), ahead * (1 + spread)


def forecast(
    ledger: Ledger,
    size: int | None = None,
    per_reference: int | None = None,
    rates: Rates | None = None,
    by_stage: Mapping[str, Any] | None = None,
    judge: Rates | None = None,
) -> Forecast | None:
    """The forecast for `size` samples, or None where too little was made to foresee anything.

    Size, samples a reference, rates (of one teacher), `staff` (`Staff.facts`, of several) and the judge's rates that
    are not given are those that the run's folder remembers.
    """
    known = RunHistory.read(ledger, rates, by_stage, judge)
    if not known.seen:
        return None
    settings = plan_settings(ledger, len(known.references), size, per_reference)
    missing = max(1, settings.size - ledger.kept())
    plays = max(PLAYS[0], min(PLAYS[1], 20_000 // missing))
    futures = [known.simulate(settings, random.Random(f"{settings.seed}/{i}")) for i in range(plays)]
    return _foreseen(settings.size, known, futures)


def _foreseen(size: int, known: RunHistory, futures: Sequence[Sequence[Unit]]) -> Forecast:
    """The mean of the futures, and an interval from how they differ and from how references differ."""
    groups, slope, weigh = _by_kind(known.made), _slope(known.made), _Weigh(known.shares)
    kinds = [{kind: _expected(groups, kind, units, slope) for kind, units in _by_kind(f).items()} for f in futures]
    rests = [_sum(took.values()) for took in kinds]
    rest = tuple(total / len(rests) for total in _sum(rests))
    calls, prompt, cached, completion, _, _ = (
        a + b for a, b in zip(_sum(unit.took for unit in known.made), rest, strict=True)
    )
    costs = [sum(weigh.cost(kind, took) for kind, took in one.items()) for one in kinds]
    ahead = _mean(costs)
    plays = math.sqrt(sum((cost - ahead) ** 2 for cost in costs) / (len(costs) - 1)) / ahead if ahead else 0.0
    spread = _spread(groups, _by_kind(futures[0]), slope, weigh, plays)
    settled = known.settled(_a_play(futures))
    cost = low = high = None
    if known.shares.priced:
        cost = settled + round(ahead)
        low, high = (settled + round(bound) for bound in _interval(ahead, spread))
    return Forecast(
        size=size,
        calls=round(calls),
        prompt_tokens=round(prompt),
        cached_tokens=round(cached),
        completion_tokens=round(completion),
        cost=cost,
        low=low,
        high=high,
        spent=settled,
        seconds=rest[4],
        calls_to_come=round(rest[0]),
        tokens_to_come=(rest[1], rest[2], rest[3]),
        spread=spread,
        references=known.seen,
    )


def _a_play(futures: Sequence[Sequence[Unit]]) -> dict[str, float]:
    """Stage → questions still to ask, on average."""
    return {stage: n / len(futures) for stage, n in Counter(unit.stage for one in futures for unit in one).items()}


def _by_kind(units: Iterable[Unit]) -> dict[Kind, list[Unit]]:
    kinds: dict[Kind, list[Unit]] = {}
    for unit in units:
        kinds.setdefault(unit.kind, []).append(unit)
    return kinds


class _Weigh:
    """What questions of a kind cost. Without a price they are weighed by tokens, those written counted as usual."""

    def __init__(self, shares: StageShares) -> None:
        self._shares = shares if shares.priced else None

    def rates(self, kind: Kind) -> Rates:
        return (self._shares.of_rates(kind[1]) if self._shares is not None else None) or Rates(1, 1, 1, 4)

    def cost(self, kind: Kind, took: Numbers) -> float:
        _, prompt, cached, completion, _, unseen = took
        return self.rates(kind).cost(prompt, cached, 0, completion) + unseen


def _sum(rows: Iterable[Numbers]) -> Numbers:
    return tuple(map(sum, zip(*rows, strict=True))) or (0.0,) * len(_NAMES)


def _expected(groups: Mapping[Kind, Sequence[Unit]], kind: Kind, coming: Sequence[Unit], slope: float) -> Numbers:
    """What `coming` will take: the mean of those made each, and the prompt longer by what their references are longer.

    Where that teacher made no call of that stage yet, it is taken for the mean of the stage, or of all.
    """
    everything = [unit for units in groups.values() for unit in units]
    made = groups.get(kind) or [unit for unit in everything if unit.stage == kind[0]] or everything
    each = [total / len(made) for total in _sum(unit.took for unit in made)]
    longer = _mean(unit.characters for unit in coming) - _mean(unit.characters for unit in made)
    each[1] = max(0.0, each[1] + slope * longer * max(1.0, each[0]))
    each[2] = min(each[1], each[2])  # of a shorter prompt no more than all of it comes from the cache
    return tuple(len(coming) * value for value in each)


def _slope(made: Sequence[Unit]) -> float:
    """Tokens a character of the references: least squares within stages, drawn towards what is expected of any text.

    The ridge counts as much as one reference 200 characters away from the mean.
    """
    above, below = TOKENS_A_CHARACTER * 200.0**2, 200.0**2
    for units in _by_kind(made).values():
        calls = [(unit.characters, unit.took[1] / max(1.0, unit.took[0])) for unit in units]
        x, y = _mean(x for x, _ in calls), _mean(y for _, y in calls)
        above += sum((a - x) * (b - y) for a, b in calls)
        below += sum((a - x) ** 2 for a, _ in calls)
    return above / below


def _spread(
    groups: Mapping[Kind, Sequence[Unit]],
    wanted: Mapping[Kind, Sequence[Unit]],
    slope: float,
    weigh: _Weigh,
    plays: float,
) -> float:
    """Half the interval as a share of what is to come: from how much references differ from one another, and from how
    much the futures do (`plays`: their standard deviation, as such a share)."""
    from scipy.special import stdtrit

    total = 0.0
    off: defaultdict[int, float] = defaultdict(float)
    targets = {unit.reference for units in wanted.values() for unit in units}
    for kind, coming in wanted.items():
        if not (units := groups.get(kind, ())):
            continue
        weight = len(coming) / len(units)
        mean = _mean(unit.characters for unit in units)
        a_character = weigh.rates(kind).prompt * slope
        costs = [weigh.cost(kind, unit.took) - a_character * (unit.characters - mean) for unit in units]
        middle = _mean(costs)
        total += weight * sum(costs)
        for unit, cost in zip(units, costs, strict=True):
            off[unit.reference] += weight * (cost - middle)
    n = len(off)
    if not targets or total <= 0:
        return 0.0
    if n < 2:
        return 1.0
    variance = n / (n - 1) * sum(value**2 for value in off.values()) * (1 + n / len(targets))
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / total**2 + plays**2 + UNFORESEEN**2)


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
