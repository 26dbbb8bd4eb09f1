"""The proof: programs compared on examples that no optimizer saw, in pairs, with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refed_dspy.ledger.candidates import Candidate
from refed_dspy.metrics.intervals import Interval, is_gain, mean_interval
from refed_dspy.records import dollars
from refed_dspy.text import format_number, table_lines

UNJUDGED = ("abstained", "judge_failed")
"""The components that say which share of its questions the judge did not decide."""


@dataclass(frozen=True)
class ProgramScore:
    """One program on the test set. `unit_cost`: picodollars a sample, or an example for programs that make no samples;
    None where a price is unknown."""

    score: Interval
    components: Mapping[str, float]
    unit_cost: float | None

    def cells(self, names: Sequence[str]) -> list[str]:
        """Its score, the components of `names`, and its unit cost, for people."""
        cost = "price unknown" if self.unit_cost is None else dollars(self.unit_cost)
        return [str(self.score), *(format_number(self.components.get(name)) for name in names), cost]

    def facts(self) -> dict[str, Any]:
        """The same in the names of the outcome's JSON."""
        return {"score": asdict(self.score), "parts": dict(self.components), "each": self.unit_cost}


@dataclass(frozen=True)
class Proof:
    """The compiled program against the uncompiled one, and against the champion where there is one."""

    baseline: ProgramScore
    compiled: ProgramScore
    gain: Interval
    """Compiled less uncompiled, paired by example, clustered by reference; 95%."""
    champion: ProgramScore | None = None
    over_champion: Interval | None = None
    """On the examples that the champion did not see either; None where there are none."""
    unit: str = "references"
    """What the intervals are clustered by."""
    whole: bool = True
    """Whether each program has a score on at least four fifths of the test set."""

    @property
    def proved(self) -> bool:
        """Whether the gain is above zero: over the champion where there is one, else over the uncompiled program."""
        if not self.whole:
            return False
        if self.champion is not None:
            return self.over_champion is not None and is_gain(self.over_champion)
        return is_gain(self.gain)

    def lines(self) -> list[str]:
        """A table for a terminal."""
        rows = [("uncompiled", self.baseline), ("compiled", self.compiled)]
        if self.champion is not None:
            rows.insert(1, ("champion", self.champion))
        components = self.compiled.components
        names = [name for name in ("wins", "grades", "diversity", "coverage") if name in components]
        names += [name for name in UNJUDGED if any(score.components.get(name) for _, score in rows)]
        titles = [name.replace("_", " ") for name in names]
        heads = ["program", "score (95% interval)", *titles, "a sample" if self.unit == "references" else "an example"]
        table = table_lines([heads, *([label, *row.cells(names)] for label, row in rows)])
        table.append(f"gain over uncompiled: {self.gain}, {self.gain.clusters} held-out {self.unit}")
        if self.over_champion is not None:
            table.append(f"gain over the champion: {self.over_champion}, {self.over_champion.clusters} {self.unit}")
        return table

    def warning(self) -> str:
        """That it rests on fewer than half of its judgements; empty where it does not."""
        for score in (self.baseline, self.compiled):
            abstained, failed = (score.components.get(name, 0.0) for name in UNJUDGED)
            if abstained + failed > 0.5:
                judged = f"{1 - abstained - failed:.0%} of its judgements"
                return f"this rests on {judged}: on {abstained:.0%} the judge abstained, on {failed:.0%} it failed"
        return ""

    def doubts(self) -> list[str]:
        """Why nothing is proved, in a line; empty where it is."""
        if self.proved:
            return []
        if not self.whole:
            return ["not proved: less than four fifths of the test set could be scored"]
        return [f"not proved: the interval of the gain reaches zero, or fewer than 5 {self.unit} were held out"]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types, as the outcome stores it."""
        champion = None if self.champion is None else self.champion.facts()
        programs = {"baseline": self.baseline.facts(), "compiled": self.compiled.facts()}
        return {**finite({**asdict(self), **programs, "champion": champion}), "proved": self.proved}


def finite(value: Any) -> Any:
    """`value` with None for numbers that are not finite, as JSON has none: the ends of an interval without ends."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def program_score(
    candidate: Candidate, clusters: Mapping[str, str], unit_cost: float | None, seed: int
) -> ProgramScore | None:
    """The scores of `candidate` on the test set; None where there are none."""
    scores = candidate.scores.get("test")
    if not scores:
        return None
    interval = mean_interval(list(scores.values()), [clusters[example] for example in scores], seed=seed)
    return ProgramScore(interval, candidate.component_means("test"), unit_cost)


def gain(
    new: Candidate, old: Candidate, clusters: Mapping[str, str], seed: int, unseen: frozenset[str] | None = None
) -> Interval | None:
    """By how much `new` scores higher than `old` on the test examples of clusters in `unseen` that both have scores on.

    A cluster's difference is the mean of its examples' differences. None where no example is shared.
    """
    a, b = new.scores.get("test", {}), old.scores.get("test", {})
    shared = [e for e in a if e in b and (unseen is None or clusters[e] in unseen)]
    if not shared:
        return None
    return mean_interval([a[e] - b[e] for e in shared], [clusters[e] for e in shared], seed=seed)
