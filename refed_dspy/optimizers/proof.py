"""The proof: programs compared on examples that no optimizer saw, in pairs, with an interval."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refed_dspy.errors import ConfigError, setting
from refed_dspy.ledger.candidates import Candidate, enough
from refed_dspy.measures.embedder import Embedder, Vectors
from refed_dspy.measures.equal_length import equal_length_gain
from refed_dspy.measures.intervals import (
    MIN_CLUSTERS,
    Interval,
    gain_interval,
    gain_or_change,
    is_gain,
    least_gain,
    mean_interval,
    spread_of,
    within,
)
from refed_dspy.optimizers.examples import Split, instruction_of
from refed_dspy.records import money
from refed_dspy.text import counted, format_number, table_lines

FORMAT = 2
"""Of an outcome as JSON. In 1, what a sample costs was in picodollars."""
UNCHANGED = "no candidate was better, so the uncompiled program is kept"
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
    """One program on the test set. `unit_cost`: dollars a sample, or an example for programs that make no samples;
    None where a price is unknown."""

    score: Interval
    components: Mapping[str, float]
    unit_cost: float | None

    def cells(self, names: Sequence[str]) -> list[str]:
        """Its score, the components of `names`, and its unit cost, for people."""
        cost = money(self.unit_cost)
        return [str(self.score), *(format_number(self.components.get(name)) for name in names), cost]

    def facts(self) -> dict[str, Any]:
        """The same in the names of the outcome's JSON."""
        return {"score": asdict(self.score), "parts": dict(self.components), "each": self.unit_cost}


@dataclass(frozen=True)
class Gain:
    """What one program gains over another on the test set, paired by example, clustered by topic or reference; with its
    98.5% interval."""

    raw: Interval
    equal_length: Interval | None = None
    """With its 95% interval, infinite where it cannot be told; None where the metric compares no answers."""
    held_out: int | None = None
    """How many references (or whatever the proof's unit is) it rests on; None: as many as clusters."""
    least: float | None = None
    """The least gain that would be found four times out of five, gains being spread as they are here."""

    @property
    def found(self) -> bool:
        return is_gain(self.raw)

    @property
    def rests_on_length(self) -> bool:
        """Whether there is a gain, but none that can be told at equal length."""
        return self.found and self.equal_length is not None and not is_gain(self.equal_length)

    def facts(self, raw: str, equal_length: str) -> dict[str, Any]:
        """Its intervals, under these names."""
        return {raw: asdict(self.raw), equal_length: None if self.equal_length is None else asdict(self.equal_length)}

    def line(self, over: str, unit: str) -> str:
        """For people."""
        level = self.equal_length
        at = "" if level is None else f"; at equal length {level if math.isfinite(level.low) else 'unknown'}"
        named = "gain over" if gain_or_change(self.raw.mean) == "gain" else "change from"
        return f"{named} {over}: {self.raw}{at}, {self.basis(unit)}"

    def basis(self, unit: str) -> str:
        """What it rests on: "16 held-out references of 12 topics"."""
        return basis(self.raw.clusters if self.held_out is None else self.held_out, self.raw.clusters, unit)


def basis(held_out: int, topics: int, unit: str) -> str:
    """What a proof rests on: "16 held-out references of 12 topics"."""
    of_topics = "" if held_out == topics else f" of {counted(topics, 'topic')}"
    one = unit.removesuffix("s")
    return f"{counted(held_out, f'held-out {one}')}{of_topics}"


@dataclass(frozen=True)
class SecondOpinion:
    """The same comparison by another judge. `proof`: what it finds by itself."""

    judge: str
    proof: Proof
    disagree: tuple[tuple[str, float, float], ...] = ()
    """Held-out instructions on which one judge sees a gain and the other a loss, with both, the widest apart first."""

    def line(self) -> str:
        """For people."""
        apart = f"; the judges see it opposite ways on {len(self.disagree)}" if self.disagree else ""
        return f"by {self.judge}: {self.proof.gain.line('uncompiled', self.proof.unit)}{apart}"

    def facts(self) -> dict[str, Any]:
        """The same in JSON types."""
        found = {"judge": self.judge, "proved": self.proof.proved, "doubts": self.proof.doubts()}
        return {**found, **self.proof.gain.facts("gain", "equal_length"), "disagree": self.disagree}


@dataclass(frozen=True)
class Proof:
    """The compiled program against the uncompiled one, and against the champion where there is one.

    All of them are asked about the same example in turn, so that a teacher or a judge that changes meanwhile favours
    none. Scores, wins and gains are raw: no longer answer is discounted.
    """

    baseline: ProgramScore
    compiled: ProgramScore
    gain: Gain
    champion: ProgramScore | None = None
    over_champion: Gain | None = None
    """On the examples that the champion did not see either; None where there are none."""
    unit: str = "references"
    """What is held out."""
    whole: bool = True
    """Whether each program has a score on at least four fifths of the test set."""
    accept_longer: bool = False
    """Whether a gain that rests on length is proved, too."""
    topics: bool = True
    """Whether topics were looked for."""
    same: bool = False
    """Whether the compiled program is the uncompiled one, since no candidate was better."""
    second: SecondOpinion | None = None
    """What the `proof_judge` says, where there is one."""
    chosen_from: int = 0
    """How many candidates the compiled program was chosen from by the validation set; 0: not known."""

    @property
    def proved(self) -> bool:
        """Whether the gain is above zero, raw and at equal length: over the champion where there is one, else over the
        uncompiled program. With a second judge, by both."""
        return self._proved_by_first and (self.second is None or self.second.proof.proved)

    @property
    def _proved_by_first(self) -> bool:
        return self._gained and (self.accept_longer or not self.rests_on_length)

    @property
    def rests_on_length(self) -> bool:
        """Whether the gain that decides is none that can be told at equal length."""
        return self._deciding is not None and self._deciding.rests_on_length

    @property
    def _deciding(self) -> Gain | None:
        """The gain that must be above zero."""
        return self.gain if self.champion is None else self.over_champion

    @property
    def _gained(self) -> bool:
        return self.whole and self._deciding is not None and self._deciding.found

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *(self.doubts() or ["proved better"])])

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
        if not self.same:
            table.append(self.gain.line("uncompiled", self.unit))
        if self.over_champion is not None:
            table.append(self.over_champion.line("the champion", self.unit))
        if self.second is not None and not self.same:
            table.append(self.second.line())
        if self.chosen_from > 1 and not self.same:
            table.append(
                f"the best of {self.chosen_from} that were scored on the validation set; no held-out {self.unit[:-1]} "
                "had a part in that choice"
            )
        return [*table, *self.assumed()]

    def assumed(self) -> list[str]:
        """What the proof could see, and what it takes for granted, in a line."""
        gain = self._deciding
        if gain is None or gain.least is None or not 0.005 <= gain.least < math.inf:  # below, it would read 0.00
            return []
        independent = "topics" if gain.held_out not in {None, gain.raw.clusters} else self.unit
        seen = f"a gain of {gain.least:.2f} would be found four times out of five, if the {independent} are independent"
        return [seen if self.topics else f"{seen}; topics were not looked for (refed teacher fetch embedder)"]

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
        if self.second is not None and self._proved_by_first and not self.proved:
            why = self.second.proof.doubts()[0].removeprefix("not proved: ")
            return [f"not proved: the second judge, {self.second.judge}, does not confirm it: {why}"]
        if self.rests_on_length:
            ratio = format_number(self.compiled.components.get("length_ratio"))
            rests = f"the gain rests on length: the answers are {ratio} times as long as the uncompiled program's"
            if self.proved:
                return ["proved only by " + setting("accept_longer", True) + f": {rests}"]
            return [f"not proved: {rests}; accept it with " + setting("accept_longer", True)]
        if self.proved:
            return []
        if self.same and self.champion is None:
            return [f"nothing to prove: {UNCHANGED}"]
        if not self.whole:
            return ["not proved: less than four fifths of the test set could be scored"]
        gain = self._deciding
        if gain is None or gain.raw.clusters < MIN_CLUSTERS:
            basis = f"0 held-out {self.unit}" if gain is None else gain.basis(self.unit)
            return [f"not proved: only {basis}; it takes {MIN_CLUSTERS} or more"]
        if gain_or_change(gain.raw.mean) == "change":
            return [f"not proved: it scored lower than the {'champion' if self.champion else 'uncompiled program'}"]
        return ["not proved: the gain's interval includes zero"]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types, as the outcome stores it."""
        champion = None if self.champion is None else self.champion.facts()
        programs = {"baseline": self.baseline.facts(), "compiled": self.compiled.facts()}
        doubts = [*([self.warning()] if self.warning() else []), *self.doubts()]
        verdict = {"proved": self.proved, "rests_on_length": self.rests_on_length, "doubts": doubts}
        gains = {**self.gain.facts("gain", "equal_length"), "over_champion": None, "over_champion_equal_length": None}
        if self.over_champion is not None:
            gains |= self.over_champion.facts("over_champion", "over_champion_equal_length")
        told = {**gains, **programs, "champion": champion, "second": self.second and self.second.facts()}
        return {**finite({**asdict(self), **told}), **verdict, "assumed": self.assumed()}


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
    values = list(scores.values())
    interval = mean_interval(values, [clusters[example] for example in scores], seed=seed)
    bounded = within(interval, max(1.0, *values), min(0.0, *values))  # a metric of one's own may go beyond 0 and 1
    return ProgramScore(bounded, candidate.component_means("test"), unit_cost)


def gain_over(
    new: Candidate,
    old: Candidate,
    clusters: Mapping[str, str],
    topics: Mapping[str, str] | None = None,
    unseen: frozenset[str] | None = None,
    seed: int = 0,
) -> Gain | None:
    """By how much `new` scores higher than `old` on the test examples of clusters in `unseen` that both have scores on;
    None where there are none.

    `topics`: cluster → its topic. A topic's difference is the mean of its examples' differences.
    """
    shared = {e: gained for e, gained in _gained(new, old).items() if unseen is None or clusters[e] in unseen}
    if not shared:
        return None
    alike = {e: clusters[e] if topics is None else topics.get(clusters[e], clusters[e]) for e in shared}
    values, groups = list(shared.values()), list(alike.values())
    of_new, level = new.compared.get("test"), None
    if of_new:
        level = within(equal_length_gain(shared, of_new, old.compared.get("test", {}), alike, seed=seed))
    scores = (*new.undiscounted("test").values(), *old.undiscounted("test").values())
    most = max(abs(score) for score in (*scores, 1.0))  # a metric of one's own may go beyond 1
    raw = within(gain_interval(values, groups), most)
    least = least_gain(spread_of(values, groups), raw.clusters)
    told = least > 0 and math.isfinite(least)  # 0: it is the same program
    return Gain(raw, level, len({clusters[e] for e in shared}), least if told else None)


def _gained(new: Candidate, old: Candidate) -> dict[str, float]:
    """Test example → by how much `new` scores higher than `old`, where both have a score."""
    a, b = new.undiscounted("test"), old.undiscounted("test")
    return {example: a[example] - b[example] for example in a if example in b}


def apart(
    by_first: Mapping[str, Candidate], by_second: Mapping[str, Candidate], shown: Mapping[str, str]
) -> tuple[tuple[str, float, float], ...]:
    """Where one judge sees a gain and the other a loss (`SecondOpinion.disagree`). `shown`: example → its text."""
    first, second = (_gained(of["compiled"], of["uncompiled"]) for of in (by_first, by_second))
    opposite = [(shown[e], first[e], second[e]) for e in first if e in second and first[e] * second[e] < 0]
    return tuple(sorted(opposite, key=lambda each: -abs(each[1] - each[2])))


def proof_of(
    programs: Mapping[str, Candidate],
    clusters: Mapping[str, str],
    topics: Mapping[str, str] | None,
    *,
    size: int,
    unit: str,
    seed: int,
    accept_longer: bool,
    same: bool,
    unit_costs: Mapping[str, float | None] = {},
    seen: Collection[str] = (),
) -> Proof | None:
    """The proof by the test scores of `programs`: "uncompiled", "compiled", and perhaps "champion", which was tuned on
    the clusters `seen`. None where no example has a score of both.

    `clusters`: example → its cluster; `topics`: as `find_topics`; `size`: of the test set; `same`: whether the compiled
    program is the uncompiled one.
    """
    scores = {name: program_score(one, clusters, unit_costs.get(name), seed) for name, one in programs.items()}
    baseline, best, champion = scores["uncompiled"], scores["compiled"], programs.get("champion")
    gain = gain_over(programs["compiled"], programs["uncompiled"], clusters, topics, seed=seed)
    if baseline is None or best is None or gain is None:
        return None
    over_champion = None
    if champion is not None:
        unseen = frozenset(clusters.values()) - {*seen}
        over_champion = gain_over(programs["compiled"], champion, clusters, topics, unseen, seed)
    return Proof(
        baseline, best, gain, scores.get("champion"), over_champion, unit,
        whole=all(enough(len(one.scores.get("test", {})), size) for one in programs.values()),
        accept_longer=accept_longer,
        topics=topics is not None,
        same=same,
    )  # fmt: skip


# --- topics of the held-out references: what a program gains on one recipe it tends to gain on another, so references
# of one topic are no independent witnesses.
#
# Each instruction's embedding, less the mean of all n instructions', is clustered by average linkage; two topics are
# one where the mean cosine between them is above `ALIKE` - 1 / (n - 1), the last being what strangers have once their
# mean is taken away. Measured with 48 instructions on 12 subjects written for it (`benchmarks/topics.py`) and 175 of
# Self-Instruct's seed tasks: fifteen instructions on five subjects are found to have 7 topics, sixteen seed tasks drawn
# at random 12. A bound of 0.225 misses much of what belongs together (9 topics of 5), one of 0.125 takes strangers for
# relatives (10 topics of 16).

ALIKE = 0.175


def find_topics(split: Split) -> Mapping[str, str] | None:
    """Cluster → the topic of a held-out cluster, named after one of its clusters. None where topics cannot be told: the
    embedding model is not downloaded, or the examples have no instruction."""
    texts = {name: text for name, text in map(instruction_of, (*split.train, *split.validation, *split.test)) if text}
    held_out = sorted({name for name, _ in map(instruction_of, split.test)})
    if len(held_out) < 2 or not all(name in texts for name in held_out):
        return None
    try:
        embedder = Embedder.open()
    except ConfigError:
        return None
    vectors = embedder.embed(list(texts.values()))
    vectors = vectors - vectors.mean(axis=0)
    rows = [list(texts).index(name) for name in held_out]
    return dict(zip(held_out, topics_of(vectors[rows], held_out, ALIKE - 1 / (len(texts) - 1)), strict=True))


def topics_of(vectors: Vectors, names: Sequence[str], alike: float) -> list[str]:
    """The topic of each row of `vectors`, named after the first of `names` that it has: those whose cosine is above
    `alike` on average are of one topic."""
    from scipy.cluster.hierarchy import fcluster, linkage

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0, lengths, 1)  # the mean itself is nobody's relative
    apart = 1 - (units @ units.T)[np.triu_indices(len(units), 1)]
    topics = fcluster(linkage(np.maximum(apart, 0), method="average"), 1 - alike, criterion="distance").tolist()
    return [names[topics.index(topic)] for topic in topics]
