"""Who answers each stage of a run, with what weights and at what rates: what a forecast draws from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from refed_dspy.ledger.history import Usage, model_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import ANY, WorkSettings, settings_of
from refed_dspy.records import Rates

JUDGE = "judge"
"""The name of the judge as one who answers."""
ONLY_TEACHER = ""
"""The name of the teacher of a run that has only one."""


@dataclass(frozen=True)
class StageWeights:
    """Who answers which stage, with what weight, and what each charges. The judge answers the stages that the program
    does not have."""

    pools: Mapping[str, Sequence[tuple[str, float]]]
    """Stage → (name, weight) of each who answers it; `ANY`: all other stages."""
    rates: Mapping[str, Rates | None]
    """Name → rates; None: unknown."""
    stages: frozenset[str]
    """Those of the program; empty where the folder does not say."""
    further: Mapping[str, str] = field(default_factory=dict)
    """The name of who answers at a further address of a teacher → the teacher's name."""

    @classmethod
    def read(cls, ledger: Ledger, settings: WorkSettings | None = None) -> StageWeights:
        """Of the run's settings: those that it starts with, or the ones that its ledger has."""
        settings = settings or settings_of(ledger)
        predictors = (ledger.meta("identity") or {}).get("program", ())
        stages = frozenset(part for path in predictors for part in path.split("."))
        of_teacher = _rates(settings.teacher.get("rates"))
        of_judge = _rates(settings.judge["rates"]) if settings.judge else of_teacher
        charges: dict[str, Rates | None] = {ONLY_TEACHER: of_teacher, JUDGE: of_judge}
        if not settings.several:
            return cls({ANY: ((ONLY_TEACHER, 1.0),)}, charges, stages)
        pools = {
            stage: [(_name(member), float(member["weight"])) for member in pool]
            for stage, pool in settings.pools.items()
        }
        members = [member for pool in settings.pools.values() for member in pool]
        charges |= {_name(member): _rates(member["rates"]) for member in members}
        further = {f"{member['model']} at {place}": _name(member) for member in members for place in _places(member)}
        return cls(pools, charges, stages, further)

    @cached_property
    def priced(self) -> bool:
        """Whether the rates of everyone who will be asked are known."""
        teachers = (name for pool in self.pools.values() for name, _ in pool)
        return all(self.rates[name] is not None for name in (*teachers, JUDGE))

    def rates_for(self, answerer: str) -> Rates | None:
        """None: unknown."""
        return self.rates.get(answerer)

    def cost(self, answerer: str, usage: Usage) -> float:
        """Picodollars of questions to `answerer`; weights, if anyone's price is unknown."""
        return self.rates_or_weights(answerer).cost(usage.prompt, usage.cached, 0, usage.completion) + usage.unseen

    def rates_or_weights(self, answerer: str) -> Rates:
        """The rates; if anyone's are unknown, weights of the tokens: one that is written counts as four of a prompt."""
        return (self.rates_for(answerer) if self.priced else None) or Rates(1, 1, 1, 4)

    def answerer_of(self, stage: str, model: str, endpoint: str) -> str:
        """The name of who answered a call that was made."""
        if self.stages and stage not in self.stages:
            return JUDGE
        if any(name == ONLY_TEACHER for name, _ in self.pools[ANY]):
            return ONLY_TEACHER
        name = f"{model_of(model, endpoint)} at {endpoint}"
        return self.further.get(name, name)

    def _pool(self, stage: str) -> Sequence[tuple[str, float]]:
        """(Name, share) of each who will answer a stage."""
        if self.stages and stage not in self.stages:
            return [(JUDGE, 1.0)]
        pool = self.pools.get(stage, self.pools[ANY])
        return [(name, weight / sum(weight for _, weight in pool)) for name, weight in pool]

    def prompt_price(self, stage: str) -> float:
        """Picodollars of a token that a stage reads."""
        return sum(share * self.rates_or_weights(name).prompt for name, share in self._pool(stage))

    def price(self, stage: str, usage: Mapping[str, Usage]) -> float:
        """Picodollars of as many calls of a stage as those of `usage` (by who answered), by who will answer: each as
        its own calls were, or where it was not asked yet, as all of the stage."""
        cost, total = 0.0, Usage.total(usage.values())
        for name, share in self._pool(stage):
            own = usage.get(name, total)
            cost += share * self.cost(name, own.times(total.calls / own.calls) if own.calls else own)
        return cost


def _name(member: Mapping[str, Any]) -> str:
    return f"{member['model']} at {member['endpoint']}"


def _places(member: Mapping[str, Any]) -> Sequence[str]:
    """The addresses of a teacher that has several."""
    places = (member.get("config") or {}).get("api_base")
    return places if isinstance(places, list) else ()


def _rates(stored: Sequence[int] | None) -> Rates | None:
    return Rates(*stored) if stored else None
