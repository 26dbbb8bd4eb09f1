"""Who answers which stage of a run, at what price, as its folder remembers it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refed_dspy.data.writers import model_of
from refed_dspy.engine.ledger import Ledger
from refed_dspy.records import Rates

JUDGE = "judge"


@dataclass(frozen=True)
class Shares:
    """Who answers which stage, with what weight, and what each charges. One teacher has no name; a judge answers the
    stages that the program has not."""

    pools: Mapping[str, Sequence[tuple[str, float]]]
    """Stage → (writer, weight); the empty name: all others."""
    rates: Mapping[str, Rates | None]
    stages: frozenset[str]

    @classmethod
    def read(cls, ledger: Ledger, rates: Rates | None, staff: Mapping[str, Any] | None, judge: Rates | None) -> Shares:
        """As the folder remembers them, but for what is given: the one teacher's rates, or the staff's facts, and the
        judge's rates."""
        stages = frozenset(name.rpartition(".")[2] for name in (ledger.meta("identity") or {}).get("program", ()))
        staff = staff or (ledger.meta("staff") if rates is None else None)
        known = rates or _rates(ledger.meta("rates"))
        had = ledger.meta("judge") or {}
        remembered = _rates(had["rates"]) if "rates" in had else known  # an earlier version wrote none
        charge: dict[str, Rates | None] = {"": known, JUDGE: judge or remembered}
        if not staff:
            return cls({"": (("", 1.0),)}, charge, stages)
        pools = {stage: [(_writer(one), float(one["weight"])) for one in pool] for stage, pool in staff.items()}
        charge |= {_writer(one): _rates(one["rates"]) for pool in staff.values() for one in pool}
        return cls(pools, charge, stages)

    @property
    def priced(self) -> bool:
        """Whether the price of everyone who will be asked is known."""
        teachers = (writer for pool in self.pools.values() for writer, _ in pool)
        return all(self.rates[writer] is not None for writer in (*teachers, JUDGE))

    def of_rates(self, writer: str) -> Rates | None:
        """None: unknown."""
        return self.rates.get(writer)

    def wrote(self, stage: str, model: str, endpoint: str) -> str:
        """Whose a call was."""
        if self.stages and stage not in self.stages:
            return JUDGE
        alone = "" in (writer for writer, _ in self.pools[""])
        return "" if alone else f"{model_of(model, endpoint)} at {endpoint}"

    def drawn(self, stage: str, rng: random.Random) -> str:
        """Who will answer a question."""
        if self.stages and stage not in self.stages:
            return JUDGE
        pool = self.pools.get(stage, self.pools[""])
        if len(pool) == 1:
            return pool[0][0]
        return rng.choices([writer for writer, _ in pool], [weight for _, weight in pool])[0]


def _writer(member: Mapping[str, Any]) -> str:
    return f"{member['model']} at {member['endpoint']}"


def _rates(stored: Sequence[int] | None) -> Rates | None:
    return Rates(*stored) if stored else None
