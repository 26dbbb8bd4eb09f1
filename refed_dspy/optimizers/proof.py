"""The proof: programs compared on examples that no optimizer saw, in pairs, with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refed_dspy.ledger.candidates import Candidate
from refed_dspy.metrics.equal_length import equal_length_gain
from refed_dspy.metrics.intervals import MIN_CLUSTERS, Interval, gain_or_loss, is_gain, mean_interval
from refed_dspy.records import dollars
from refed_dspy.text import format_number, table_lines

UNJUDGED = {"abstained": "abstained", "judge_failed": "judge failed"}
"""The components that say which share of its questions the judge did not decide."""
COLUMNS = {
    "wins": "wins",
    "grades": "grades",
    "diversity": "diversity",
    "coverage": "coverage",
    "length_ratio": "length",
    **UNJUDGED,
}
"""Component → its head in the table. Those of UNJUDGED are left out where it would show nothing but zeros."""


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
    """The compiled program against the uncompiled one, and against the champion where there is one.

    Scores, wins and gains are raw: no longer answer is discounted. The gains at equal length, infinite where they
    cannot be told, are None where the metric compares no answers.
    """

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
    equal_length: Interval | None = None
    """The gain over the uncompiled program at equal length."""
    over_champion_equal_length: Interval | None = None
    accept_longer: bool = False
    """Whether a gain that rests on length is proved, too."""

    @property
    def proved(self) -> bool:
        """Whether the gain is above zero, raw and at equal length: over the champion where there is one, else over the
        uncompiled program."""
        return self._gained and (self.accept_longer or not self.rests_on_length)

    @property
    def rests_on_length(self) -> bool:
        """Whether there is a gain, but none that can be told at equal length."""
        controlled = self.equal_length if self.champion is None else self.over_champion_equal_length
        return self._gained and controlled is not None and not is_gain(controlled)

    @property
    def _gained(self) -> bool:
        raw = self.gain if self.champion is None else self.over_champion
        return self.whole and raw is not None and is_gain(raw)

    def lines(self) -> list[str]:
        """A table for a terminal."""
        rows = [("uncompiled", self.baseline), ("compiled", self.compiled)]
        if self.champion is not None:
            rows.insert(1, ("champion", self.champion))
        empty = {name for name in UNJUDGED if not any(score.components.get(name) for _, score in rows)}
        names = [name for name in COLUMNS if name in self.compiled.components and name not in empty]
        unit = "a sample" if self.unit == "references" else "an example"
        heads = ["program", "score (95% interval)", *(COLUMNS[name] for name in names), unit]
        table = table_lines([heads, *([label, *row.cells(names)] for label, row in rows)])
        over, level = self.over_champion, _at_equal_length(self.equal_length)
        table.append(f"{_named(self.gain)} uncompiled: {self.gain}{level}, {self.gain.clusters} held-out {self.unit}")
        if over is not None:
            level = _at_equal_length(self.over_champion_equal_length)
            table.append(f"{_named(over)} the champion: {over}{level}, {over.clusters} {self.unit}")
        return table

    def warning(self) -> str:
        """That it rests on fewer than half of its judgements; empty where it does not."""
        for score in (self.baseline, self.compiled):
            abstained, failed = (score.components.get(name, 0.0) for name in UNJUDGED)
            if abstained + failed > 0.5:
                judged = f"{1 - abstained - failed:.0%} of its judgements"
                return f"based on only {judged}: the judge abstained on {abstained:.0%} and failed on {failed:.0%}"
        return ""

    def doubts(self) -> list[str]:
        """Why nothing is proved, or on whose word, in a line; empty where it simply is."""
        if self.rests_on_length:
            ratio = format_number(self.compiled.components.get("length_ratio"))
            rests = f"the gain rests on length: the answers are {ratio} times as long as the uncompiled program's"
            if self.proved:
                return [f"proved only by accept_longer=True: {rests}"]
            return [f"not proved: {rests}; accept it with accept_longer=True"]
        if self.proved:
            return []
        if not self.whole:
            return ["not proved: less than four fifths of the test set could be scored"]
        gain = self.gain if self.champion is None else self.over_champion
        if gain is None or gain.clusters < MIN_CLUSTERS:
            held_out = 0 if gain is None else gain.clusters
            return [f"not proved: only {held_out} {self.unit} were held out; it takes {MIN_CLUSTERS} or more"]
        if gain_or_loss(gain.mean) == "loss":
            return [f"not proved: it scored lower than the {'champion' if self.champion else 'uncompiled program'}"]
        return ["not proved: the gain's interval includes zero"]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types, as the outcome stores it."""
        champion = None if self.champion is None else self.champion.facts()
        programs = {"baseline": self.baseline.facts(), "compiled": self.compiled.facts()}
        doubts = [*([self.warning()] if self.warning() else []), *self.doubts()]
        verdict = {"proved": self.proved, "rests_on_length": self.rests_on_length, "doubts": doubts}
        return {**finite({**asdict(self), **programs, "champion": champion}), **verdict}


def _named(gain: Interval) -> str:
    return "loss against" if gain_or_loss(gain.mean) == "loss" else "gain over"


def _at_equal_length(gain: Interval | None) -> str:
    if gain is None:
        return ""
    return f"; at equal length {gain if math.isfinite(gain.low) else 'unknown'}"


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
    """The raw scores of `candidate` on the test set; None where there are none."""
    scores = candidate.undiscounted("test")
    if not scores:
        return None
    interval = mean_interval(list(scores.values()), [clusters[example] for example in scores], seed=seed)
    return ProgramScore(interval, candidate.component_means("test"), unit_cost)


def gains(
    new: Candidate, old: Candidate, clusters: Mapping[str, str], seed: int, unseen: frozenset[str] | None = None
) -> tuple[Interval | None, Interval | None]:
    """By how much `new` scores higher than `old` on the test examples of clusters in `unseen` that both have scores on:
    raw, and at equal length.

    A cluster's difference is the mean of its examples' differences. None where no example is shared; the second also
    where no verdicts are.
    """
    a, b = new.undiscounted("test"), old.undiscounted("test")
    shared = {e: a[e] - b[e] for e in a if e in b and (unseen is None or clusters[e] in unseen)}
    if not shared:
        return None, None
    raw = mean_interval(list(shared.values()), [clusters[e] for e in shared], seed=seed)
    if not (of_new := new.compared.get("test")):
        return raw, None
    return raw, equal_length_gain(shared, of_new, old.compared.get("test", {}), clusters, seed=seed)
