"""What a run will come to, foreseen from what it has come to so far.

The plan itself is played to its end without a teacher, some times over, which says how many calls of each stage are
still to come and for which references. What a call of a stage takes is the mean over those made, corrected for the
length of the reference in its prompt: the lengths of all references are known beforehand. The interval is Student's,
over references: calls about one reference are alike, so they are the sample's units (linearised ratio estimator).
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from refed_dspy.engine.accounts import spent
from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.plan import Plan, PlanSettings, Propose, Respond, Study
from refed_dspy.programs.reference_level import TAKEN_SHOWN
from refed_dspy.records import Rates, Reference

CONFIDENCE = 0.9
PLAYS = 8
"""How often the plan is played: what fails and what synthesis gives is drawn anew each time."""
UNFORESEEN = 0.015
"""Standard deviation, as a share, of what all this leaves out: calls in flight when the target fills, later rounds."""
RARE = (20.0, 0.02)
"""What is held of a stage before it failed: as if two in a hundred had, seen twenty times."""
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
    characters: float
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
    calls_to_come: int
    spread: float
    """Half the interval's width as a share of what is still to come; 1 where nothing can be said of it."""
    references: int
    """How many it is foreseen from: those that gave samples."""

    def at(self, rates: Rates) -> tuple[int, int, int]:
        """Cost, low and high of as many tokens at other rates, from the first call on."""
        cost = round(rates.cost(self.prompt_tokens, self.cached_tokens, 0, self.completion_tokens))
        return cost, round(cost * (1 - self.spread)), round(cost * (1 + self.spread))


def forecast(ledger: Ledger, size: int | None = None, per_reference: int | None = None) -> Forecast | None:
    """The forecast for `size` samples (None: the run's own), or None where too little was made to foresee anything."""
    known = Known.read(ledger)
    if not known.seen:
        return None
    settings = plan_settings(ledger, len(known.references), size, per_reference)
    futures = [known.play(settings, random.Random(f"{settings.seed}/{i}")) for i in range(PLAYS)]
    return _foreseen(settings.size, known, futures)


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
SELECT c.stage, c.item, max(coalesce(a.repetition, 0)), count(*), total(prompt_tokens), total(cached_tokens),
       total(completion_tokens), total(seconds),
       total(CASE WHEN prompt_tokens IS NULL AND outcome NOT IN ('lost', 'cancelled') THEN cost END)
FROM calls c LEFT JOIN answers a ON a.key = c.key
WHERE outcome NOT IN ('sent', 'lost') GROUP BY c.key HAVING sum(prompt_tokens IS NOT NULL)
"""


@dataclass(frozen=True)
class Known:
    """What a run's ledger says that bears on its future."""

    ledger: Ledger
    references: Sequence[Reference]
    made: Sequence[Unit]
    answered: frozenset[tuple[str, str]]
    done: Mapping[str, int]
    """Stage → questions answered."""
    failed: Mapping[str, int]
    """Stage → questions that failed for good or for now."""
    gave: Sequence[int]
    """New instructions of each synthesis call."""
    instruction_characters: float
    rates: Rates | None
    charged: int

    @classmethod
    def read(cls, ledger: Ledger) -> Known:
        db, references, stored = ledger.db, ledger.references(), ledger.meta("rates")
        (length,) = db.execute("SELECT avg(length(text)) FROM instructions").fetchone()
        earlier = _Earlier((ref, round_, new) for ref, _, round_, new in ledger.proposals())
        return cls(
            ledger=ledger,
            references=references,
            made=list(_made(ledger, references, earlier, length or 0.0)),
            answered=frozenset(db.execute("SELECT stage, item FROM answers")),
            done=dict(db.execute("SELECT stage, count(*) FROM answers GROUP BY stage")),
            failed=dict(db.execute("SELECT stage, count(*) FROM failures GROUP BY stage")),
            gave=[new for *_, new in ledger.proposals()],
            instruction_characters=length or 0.0,
            rates=Rates(*stored) if stored else None,
            charged=spent(ledger).cost,
        )

    @property
    def seen(self) -> int:
        """References that gave samples."""
        return len({unit.reference for unit in self.made if unit.stage == "response_improvement"})

    def fails(self, stage: str, rng: random.Random) -> float:
        """A plausible share of a stage's questions that fail: drawn from its posterior, the prior being `RARE`."""
        weight, share = RARE
        bad, good = self.failed.get(stage, 0), self.done.get(stage, 0)
        return rng.betavariate(bad + weight * share, good + weight * (1 - share))

    def play(self, settings: PlanSettings, rng: random.Random) -> list[Unit]:
        """The plan played to its end: every question still to ask. What fails, and how much a synthesis call gives,
        is drawn from what happened so far."""
        stages = (*_STUDY.values(), "instruction_synthesis", "response_generation", "response_improvement")
        failing = {stage: self.fails(stage, rng) for stage in stages}
        gave = rng.choices(self.gave, k=len(self.gave)) or [settings.instructions_per_feature]
        numbers, coming = itertools.count(-1, -1), list[Unit]()
        earlier = _Earlier((ref, round_, new) for ref, _, round_, new in self.ledger.proposals())
        plan = Plan(settings)
        ledger = self.ledger
        plan.restore(ledger.kept(), ledger.proposals(), ledger.used(), ledger.open_instructions())

        def asked(stage: str, index: int, item: str, shown: float = 0.0) -> bool:
            """Ask; whether it was answered."""
            if (stage, item) in self.answered:
                return True
            coming.append(Unit(stage, index, _characters(stage, self.references[index]) + shown))
            return rng.random() >= failing[stage]

        while (unit := plan.next_unit()) is not None:
            index = unit.reference
            match unit:
                case Study():
                    plan.studied(unit, failed=not asked(_STUDY[unit.part], index, self.references[index].id))
                case Propose():
                    shown = self.instruction_characters * earlier.shown(index, unit.round)
                    new = rng.choice(gave) if asked("instruction_synthesis", index, "", shown) else 0
                    earlier.add(index, unit.round, new)
                    plan.proposed(unit, [(next(numbers), "") for _ in range(new)])
                case Respond():
                    item = str(unit.instruction)
                    kept = asked("response_generation", index, item) and asked("response_improvement", index, item)
                    plan.responded(unit, kept)
        return coming


class _Earlier:
    """How many instructions a reference gave in the rounds before one: the newest of them are shown as taken."""

    def __init__(self, given: Iterable[tuple[int, int, int]]) -> None:
        self._given: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for reference, round_, new in given:
            self.add(reference, round_, new)

    def add(self, reference: int, round_: int, new: int) -> None:
        self._given[reference][round_] += new

    def shown(self, reference: int, round_: int) -> int:
        return min(TAKEN_SHOWN, sum(new for r, new in self._given[reference].items() if r < round_))


def _made(
    ledger: Ledger, references: Sequence[Reference], earlier: _Earlier, instruction_characters: float
) -> Iterator[Unit]:
    """Every question that was answered, whatever the answer was worth, with all its calls."""
    position = {reference.id: index for index, reference in enumerate(references)}
    origin = dict(ledger.db.execute("SELECT CAST(id AS TEXT), reference FROM instructions"))
    for stage, item, round_, *took in ledger.db.execute(_MADE):
        index = origin.get(item) if stage.startswith(("response_g", "response_i")) else None
        index = position.get(item.partition("/")[0]) if index is None else index
        if index is not None:
            shown = earlier.shown(index, round_) if stage == "instruction_synthesis" else 0
            characters = _characters(stage, references[index]) + instruction_characters * shown
            yield Unit(stage, index, characters, tuple(took))


def _characters(stage: str, reference: Reference) -> int:
    """How much of the reference stands in a stage's prompt (signatures/)."""
    if stage == "response_improvement":
        return 0
    return len(reference.instruction) + (0 if stage == "instruction_synthesis" else len(reference.response))


def _foreseen(size: int, known: Known, futures: Sequence[Sequence[Unit]]) -> Forecast:
    """The mean of the futures, and an interval from how they differ and from how references differ."""
    groups = {stage: [u for u in known.made if u.stage == stage] for stage in {unit.stage for unit in known.made}}
    slope = _slope(known.made)
    rests = [_sum(_expected(groups, stage, units, slope) for stage, units in _by_stage(f).items()) for f in futures]
    rest = tuple(total / len(rests) for total in _sum(rests))
    calls, prompt, cached, completion, _, _ = (
        a + b for a, b in zip(_sum(unit.took for unit in known.made), rest, strict=True)
    )
    weigh = known.rates or Rates(1, 1, 1, 4)  # without a price: tokens, those written counted as usual
    costs = [_cost(one, weigh) for one in rests]
    ahead = _mean(costs)
    plays = math.sqrt(sum((cost - ahead) ** 2 for cost in costs) / (len(costs) - 1)) / ahead if ahead else 0.0
    spread = _spread(groups, _by_stage(futures[0]), slope, weigh, plays)
    cost = low = high = None
    if known.rates is not None:
        cost = known.charged + round(ahead)
        low, high = (known.charged + max(0, round(ahead * (1 + sign * spread))) for sign in (-1, 1))
    return Forecast(
        size=size,
        calls=round(calls),
        prompt_tokens=round(prompt),
        cached_tokens=round(cached),
        completion_tokens=round(completion),
        cost=cost,
        low=low,
        high=high,
        spent=known.charged,
        seconds=rest[4],
        calls_to_come=round(rest[0]),
        spread=spread,
        references=known.seen,
    )


def _by_stage(units: Iterable[Unit]) -> dict[str, list[Unit]]:
    stages: dict[str, list[Unit]] = {}
    for unit in units:
        stages.setdefault(unit.stage, []).append(unit)
    return stages


def _sum(rows: Iterable[Numbers]) -> Numbers:
    return tuple(map(sum, zip(*rows, strict=True))) or (0.0,) * len(_NAMES)


def _cost(took: Numbers, rates: Rates) -> float:
    _, prompt, cached, completion, _, unseen = took
    return rates.cost(prompt, cached, 0, completion) + unseen


def _expected(groups: Mapping[str, Sequence[Unit]], stage: str, coming: Sequence[Unit], slope: float) -> Numbers:
    """What `coming` will take: the mean of those made each, and the prompt longer by what their references are longer.

    A stage that no call was made of yet is taken for the mean of all.
    """
    made = groups.get(stage) or [unit for units in groups.values() for unit in units]
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
    groups: Mapping[str, Sequence[Unit]],
    wanted: Mapping[str, Sequence[Unit]],
    slope: float,
    rates: Rates,
    plays: float,
) -> float:
    """Half the interval as a share of what is to come: from how much references differ from one another, and from how
    much the futures do (`plays`: their standard deviation, as such a share)."""
    from scipy.stats import t

    total = 0.0
    off: defaultdict[int, float] = defaultdict(float)
    targets = {unit.reference for units in wanted.values() for unit in units}
    for stage, coming in wanted.items():
        if not (units := groups.get(stage, ())):
            continue
        weight = len(coming) / len(units)
        mean = _mean(unit.characters for unit in units)
        costs = [_cost(u.took, rates) - rates.prompt * slope * (u.characters - mean) for u in units]
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
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(variance / total**2 + plays**2 + UNFORESEEN**2)


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
