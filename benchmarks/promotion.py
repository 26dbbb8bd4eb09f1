"""The promotion rule on its own: simulated comparisons without a gain, with a true one, and with one of length alone.

`python -m benchmarks.promotion [SEED]`: each comparison has 8 references with 4 samples each. It is promoted where both
its raw gain and its gain at equal length are one (`is_gain`).

Scores: a reference's difference is its own effect (normal, sd 0.08) plus the mean of its samples' noise (sd 0.12 each),
sd 0.10 in all. Noisier scores (0.10 and 0.15: 0.125 in all) are reported too. In simulated compiles
(benchmarks/optimization.py) the differences of held-out references have an sd of 0.01 to 0.04.

Outcomes: a sample wins, ties or loses (1, 0.5, 0); a reference's effect shifts wins against losses, symmetrically about
zero. Measured with few ties and with many; with many, a few references differ widely from the rest, which are all
alike.

Lengths: the log of an answer's length over the uncompiled program's is normal, with an sd of 0.25, around the log of
the ratio named. A judge that counts words prefers the longer answer, always; one that is partly swayed prefers it with
a probability that grows with the log (logistic, its slope 3), in each of two orders, and ties where they disagree.

How much can be expected: a rule that promotes no more than 3.5% where most references gain a little and a few lose much
pays for it where references are few: of 8 with scores as above it finds a gain of 0.15 in two of three comparisons,
where Student's test finds nine, and promotes 10% of the skewed ones. Sixteen references (the number a compile holds out
if it has them) make up for that.

Search: of 20 candidates the one that scores best on 8 validation references is compared on 16 others. What that
validation score is worth by itself is told, too: the candidate's gain there, called one because it is above zero, or
because its interval is.

Two judges: each has noise of its own on the same answers; a reference's effect is the same for both, or each judge's.

Topics: known to the rule, as the proof finds them by embeddings (`benchmarks/topics.py` measures how well), or not.
Drift: both programs asked in turns about each reference, as the proof does, or one after the other.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refed_dspy.measures.equal_length import equal_length_gain
from refed_dspy.measures.intervals import gain_interval, is_gain
from refed_dspy.records import Compared

Floats = NDArray[np.float64]
COMPARISONS, NULL_COMPARISONS, FEW = 1_000, 5_000, 20
REFERENCES, SAMPLES = 8, 4
CALM, LOUD = (0.08, 0.12), (0.10, 0.15)
"""The sd of a reference's effect, and of a sample's noise."""
GAIN, WINS = 0.15, 0.6
"""A true gain, and the weight of wins in a score."""
SPREAD = 0.25
RATIOS = (1.05, 1.1, 1.34, 1.85, 2.64, 5.17)
MOST_FALSE, LEAST_TRUE, MOST_FOOLED = 0.035, 0.95, 1

Values = Callable[[np.random.Generator, Floats], Floats]
"""What the samples gain, (references, samples), given the logs of their length ratios."""


@dataclass(frozen=True)
class Comparison:
    """One kind of comparison: what is gained, at which length ratio, on how many references."""

    values: Values
    ratio: float = 1.0
    references: int = REFERENCES
    shared: int = 1
    """How many references share a topic that is known."""

    def promoted(self, rng: np.random.Generator) -> bool:
        longer = rng.normal(np.log(self.ratio), SPREAD, (self.references, SAMPLES))
        values = self.values(rng, longer)
        gains = {str(i): float(row.mean()) for i, row in enumerate(values)}
        topic_of = {name: int(name) // self.shared for name in gains}
        if not is_gain(gain_interval(list(gains.values()), list(topic_of.values()))):
            return False
        pairs = [list(zip(0.5 + won / WINS, log, strict=True)) for won, log in zip(values, longer, strict=True)]
        new = {name: Compared(WINS, verdicts) for name, verdicts in zip(gains, pairs, strict=True)}
        old = {name: Compared(WINS, [(0.5, 0.0)] * SAMPLES) for name in gains}
        return is_gain(equal_length_gain(gains, new, old, topic_of))

    def promotions(self, seed: int, comparisons: int = COMPARISONS) -> list[bool]:
        rng = np.random.default_rng(seed)
        return [self.promoted(rng) for _ in range(comparisons)]


def scores(gain: float, noise: tuple[float, float] = CALM) -> Values:
    """Scores that lie between 0 and 1 except for extreme draws, which are not clipped: that would change the model."""
    return lambda rng, longer: gain + rng.normal(0, noise[0], (len(longer), 1)) + rng.normal(0, noise[1], longer.shape)


def outcomes(effect: float, ties: float) -> Values:
    """Odds of win, tie and loss are exp(e) : ties : exp(-e), where e is normal with sd `effect`."""

    def values(rng: np.random.Generator, longer: Floats) -> Floats:
        won = np.exp(rng.normal(0, effect, (len(longer), 1)))
        lost, drawn = 1 / won, rng.uniform(0, 1, longer.shape)
        drawn *= won + lost + ties
        return WINS * (np.where(drawn < won, 1.0, np.where(drawn < won + lost, 0.0, 0.5)) - 0.5)

    return values


def counts_words(rng: np.random.Generator, longer: Floats) -> Floats:  # noqa: ARG001
    return WINS * np.sign(longer) / 2


def swayed(rng: np.random.Generator, longer: Floats) -> Floats:
    first, second = rng.logistic(0, 1, (2, *longer.shape)) < 3 * longer
    return np.asarray(WINS * (first.astype(float) + second - 1) / 2)


def heavy_tailed(rng: np.random.Generator, longer: Floats) -> Floats:
    """Student's t with 2.5 degrees."""
    return CALM[0] * rng.standard_t(2.5, (len(longer), 1)) + rng.normal(0, CALM[1], longer.shape)


def skewed(rng: np.random.Generator, longer: Floats) -> Floats:
    """Most references gain a little, a few lose much."""
    effects = 0.08 * (1 - rng.exponential(1, (len(longer), 1)))
    return effects + rng.normal(0, 0.02, longer.shape)


def topics(gain: float = 0.0) -> Values:
    """A third as many topics as references, which they share; the sd of a topic's effect is 0.12."""

    def values(rng: np.random.Generator, longer: Floats) -> Floats:
        shared = np.repeat(rng.normal(0, 0.12, math.ceil(len(longer) / 3)), 3)[: len(longer), None]
        return scores(gain)(rng, longer) + shared

    return values


def drifting(in_turns: bool, gain: float = 0.0) -> Values:
    """A level common to all questions walks at random, so that the means of the first and of the second half of all
    questions differ with an sd of 0.05. One program is asked after the other, or both in turns about each reference."""

    def values(rng: np.random.Generator, longer: Floats) -> Floats:
        level = np.cumsum(rng.normal(0, 1, 2 * len(longer)))
        level *= 0.05 / math.sqrt(
            2 * len(longer) / 3
        )  # the variance of the halves' difference is a third of the walk's
        old, new = (level[0::2], level[1::2]) if in_turns else np.split(level, 2)
        drift = new - old
        if in_turns:
            drift[1::2] *= -1  # another one is first each time
        return scores(gain)(rng, longer) + drift[:, None]

    return values


NULLS = {
    "no gain, scores": Comparison(scores(0.0)),
    "no gain, louder scores": Comparison(scores(0.0, LOUD)),
    "no gain, win/tie/loss": Comparison(outcomes(effect=1, ties=1)),
    "no gain, mostly ties": Comparison(outcomes(effect=3, ties=20)),
    "no gain, 1.34 times as long": Comparison(scores(0.0), 1.34),
}
DEPENDENT = {
    f"{name}, {references} references": comparison
    for references in (REFERENCES, 16)
    for name, comparison in {
        "no gain, independent": Comparison(scores(0.0), references=references),
        "no gain, t with 2.5 degrees": Comparison(heavy_tailed, references=references),
        "no gain, skewed to the left": Comparison(skewed, references=references),
        "no gain, topics shared by three": Comparison(topics(), references=references, shared=3),
        "no gain, drift, in turns": Comparison(drifting(in_turns=True), references=references),
    }.items()
}
"""What the proof is made for."""
OUTSIDE = {
    **{f"no gain, judge partly swayed, {ratio} times": Comparison(swayed, ratio) for ratio in (1.1, 1.2, 1.34, 1.85)},
    "no gain, topics that nobody looked for": Comparison(topics(), references=16),
    "no gain, drift, one after the other": Comparison(drifting(in_turns=False), references=16),
}
GAINS = {
    "8 references": Comparison(scores(GAIN)),
    "12 references": Comparison(scores(GAIN), references=12),
    "topics shared by three, 16 references": Comparison(topics(GAIN), references=16, shared=3),
    "drift, in turns, 16 references": Comparison(drifting(True, GAIN), references=16),
    "louder, 8 references": Comparison(scores(GAIN, LOUD)),
    "louder, 12 references": Comparison(scores(GAIN, LOUD), references=12),
    "louder, 16 references": Comparison(scores(GAIN, LOUD), references=16),
    "1.1 times as long, 16 references": Comparison(scores(GAIN), 1.1, 16),
    "1.2 times as long, 16 references": Comparison(scores(GAIN), 1.2, 16),
    "1.34, 16 references": Comparison(scores(GAIN), 1.34, 16),
    "1.85, 16 references": Comparison(scores(GAIN), 1.85, 16),
}


CANDIDATES, VALIDATION, TEST = 20, 8, 16


def searched(seed: int, gain: float, comparisons: int) -> tuple[float, float, float]:
    """The share of searches whose best candidate scores above zero on the validation set, has its interval there above
    zero, and is promoted. Each of its candidates has this true gain."""
    rng, held_out = np.random.default_rng(seed), Comparison(scores(gain), references=TEST)
    found = np.zeros(3)
    for _ in range(comparisons):
        longer = np.zeros((VALIDATION, SAMPLES))
        tried = [scores(gain)(rng, longer).mean(axis=1) for _ in range(CANDIDATES)]
        best = max(tried, key=lambda each: float(each.mean()))
        found += [best.mean() > 0, is_gain(gain_interval(best.tolist())), held_out.promoted(rng)]
    above, called, proved = (found / comparisons).tolist()
    return above, called, proved


def by_both(seed: int, gain: float, shared: bool, comparisons: int) -> float:
    """The share of comparisons in which two judges find the gain. `shared`: whether they see the same effects."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(comparisons):
        effects = rng.normal(0, CALM[0], (2, TEST))
        effects[1] = effects[0] if shared else effects[1]
        noise = rng.normal(0, CALM[1] / math.sqrt(SAMPLES), (2, TEST))
        found += all(is_gain(gain_interval((gain + each).tolist())) for each in effects + noise)
    return found / comparisons


def row(name: str, figure: str, must: str = "") -> None:
    print(f"{name:<52}{figure:>8}  {must}".rstrip(), flush=True)


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    met = True
    row("comparisons", "promoted", "must")
    for name, comparison in {**NULLS, **DEPENDENT}.items():
        share = sum(comparison.promotions(seed, NULL_COMPARISONS)) / NULL_COMPARISONS
        met = met and share <= MOST_FALSE
        row(f"{name}, {NULL_COMPARISONS:,}", f"{share:.1%}", f"<= {MOST_FALSE:.1%}")
    for references in (REFERENCES, 16):
        for ratio in RATIOS:
            fooled = sum(Comparison(counts_words, ratio, references).promotions(seed, FEW))
            met = met and fooled <= MOST_FOOLED
            name = f"a judge that counts words, {ratio} times, {references} references"
            row(name, str(fooled), f"<= {MOST_FOOLED} of {FEW}")
    above, called, proved = searched(seed, 0.0, NULL_COMPARISONS)
    met = met and proved <= MOST_FALSE
    row(f"no gain, best of {CANDIDATES} candidates, {NULL_COMPARISONS:,}", f"{proved:.1%}", f"<= {MOST_FALSE:.1%}")
    row("the same, above zero on the validation set", f"{above:.1%}")
    row("the same, its interval there above zero", f"{called:.1%}")
    row(f"true gain of {GAIN}, best of {CANDIDATES} candidates", f"{searched(seed, GAIN, COMPARISONS)[2]:.1%}")
    for shared in (True, False):
        name = f"two judges, {'the same' if shared else 'their own'} effects"
        row(f"no gain, {name}", f"{by_both(seed, 0.0, shared, NULL_COMPARISONS):.2%}")
        row(f"true gain of {GAIN}, {name}", f"{by_both(seed, GAIN, shared, COMPARISONS):.1%}")
    found = sum(Comparison(scores(GAIN), references=16).promotions(seed)) / COMPARISONS
    met = met and found >= LEAST_TRUE
    row(f"true gain of {GAIN}, 16 references, {COMPARISONS:,}", f"{found:.1%}", f">= {LEAST_TRUE:.0%}")
    for name, comparison in {**GAINS, **OUTSIDE}.items():
        row(f"{'the same, ' * (name in GAINS)}{name}", f"{sum(comparison.promotions(seed)) / COMPARISONS:.1%}")
    if not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
