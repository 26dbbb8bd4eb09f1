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

How much can be expected: Student's test, the best there is for scores like the noisier ones, finds a gain of 0.15 from
8 references in 83% of comparisons when it promotes 2.5% of those without one. Sixteen references (the number a compile
holds out if it has them) make up for the noise.

The last rows are about judges partly swayed, and about what breaks the rule's assumptions: references that are
independent of each other, and gains that are not skewed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refed_dspy.metrics.equal_length import equal_length_gain
from refed_dspy.metrics.gains import gain_interval, is_gain
from refed_dspy.records import Compared

Floats = NDArray[np.float64]
COMPARISONS, FEW = 1_000, 20
REFERENCES, SAMPLES = 8, 4
CALM, LOUD = (0.08, 0.12), (0.10, 0.15)
"""The sd of a reference's effect, and of a sample's noise."""
GAIN, WINS = 0.15, 0.6
"""A true gain, and the weight of wins in a score."""
SPREAD = 0.25
RATIOS = (1.05, 1.1, 1.34, 1.85, 2.64, 5.17)
MOST_FALSE, LEAST_TRUE, MOST_FOOLED = 0.035, 18, 1

Values = Callable[[np.random.Generator, Floats], Floats]
"""What the samples gain, (references, samples), given the logs of their length ratios."""


@dataclass(frozen=True)
class Comparison:
    """One kind of comparison: what is gained, at which length ratio, on how many references."""

    values: Values
    ratio: float = 1.0
    references: int = REFERENCES

    def promoted(self, rng: np.random.Generator) -> bool:
        longer = rng.normal(np.log(self.ratio), SPREAD, (self.references, SAMPLES))
        values = self.values(rng, longer)
        gains = {str(i): float(row.mean()) for i, row in enumerate(values)}
        if not is_gain(gain_interval(list(gains.values()))):
            return False
        pairs = [list(zip(0.5 + won / WINS, log, strict=True)) for won, log in zip(values, longer, strict=True)]
        new = {name: Compared(WINS, verdicts) for name, verdicts in zip(gains, pairs, strict=True)}
        old = {name: Compared(WINS, [(0.5, 0.0)] * SAMPLES) for name in gains}
        return is_gain(equal_length_gain(gains, new, old, {name: name for name in gains}))

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


def topics(rng: np.random.Generator, longer: Floats) -> Floats:
    """References in pairs that share half of their effect's variance."""
    shared = np.repeat(rng.normal(0, 1, len(longer) // 2), 2)[:, None]
    return scores(0.0, (CALM[0] / 2**0.5, CALM[1]))(rng, longer) + CALM[0] / 2**0.5 * shared


def drift(rng: np.random.Generator, longer: Floats) -> Floats:
    """All references are shifted by the same, with a quarter of an effect's sd."""
    return scores(0.0)(rng, longer) + rng.normal(0, CALM[0] / 4)


def skewed(rng: np.random.Generator, longer: Floats) -> Floats:
    """Most references gain a little, a few lose much."""
    effects = 0.08 * (1 - rng.exponential(1, (len(longer), 1)))
    return effects + rng.normal(0, 0.02, longer.shape)


NULLS = {
    "no gain, scores": Comparison(scores(0.0)),
    "no gain, louder scores": Comparison(scores(0.0, LOUD)),
    "no gain, win/tie/loss": Comparison(outcomes(effect=1, ties=1)),
    "no gain, mostly ties": Comparison(outcomes(effect=3, ties=20)),
    "no gain, 1.34 times as long": Comparison(scores(0.0), 1.34),
}
OUTSIDE = {
    **{f"no gain, judge partly swayed, {ratio} times": Comparison(swayed, ratio) for ratio in (1.1, 1.2, 1.34, 1.85)},
    "no gain, topics shared by two": Comparison(topics),
    "no gain, a drift common to all": Comparison(drift),
    "no gain, skewed to the left": Comparison(skewed),
}
GAINS = {
    "louder, 8 references": Comparison(scores(GAIN, LOUD)),
    "louder, 12 references": Comparison(scores(GAIN, LOUD), references=12),
    "louder, 16 references": Comparison(scores(GAIN, LOUD), references=16),
    "1.1 times as long": Comparison(scores(GAIN), 1.1),
    "1.2 times as long": Comparison(scores(GAIN), 1.2),
    "1.34 times as long": Comparison(scores(GAIN), 1.34),
    "1.34, 16 references": Comparison(scores(GAIN), 1.34, 16),
    "1.85, 16 references": Comparison(scores(GAIN), 1.85, 16),
}


def row(name: str, figure: str, must: str = "") -> None:
    print(f"{name:<52}{figure:>8}  {must}".rstrip(), flush=True)


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    met = True
    row("comparisons", "promoted", "must")
    for name, comparison in NULLS.items():
        share = sum(comparison.promotions(seed)) / COMPARISONS
        met = met and share <= MOST_FALSE
        row(f"{name}, {COMPARISONS:,}", f"{share:.1%}", f"<= {MOST_FALSE:.1%}")
    for references in (REFERENCES, 16):
        for ratio in RATIOS:
            fooled = sum(Comparison(counts_words, ratio, references).promotions(seed, FEW))
            met = met and fooled <= MOST_FOOLED
            name = f"a judge that counts words, {ratio} times, {references} references"
            row(name, str(fooled), f"<= {MOST_FOOLED} of {FEW}")
    gains = Comparison(scores(GAIN)).promotions(seed)
    met = met and sum(gains[:FEW]) >= LEAST_TRUE
    row(f"true gain of {GAIN}, the first {FEW}", str(sum(gains[:FEW])), f">= {LEAST_TRUE} of {FEW}")
    row(f"true gain of {GAIN}, {COMPARISONS:,}", f"{sum(gains) / COMPARISONS:.1%}")
    for name, comparison in {**GAINS, **OUTSIDE}.items():
        row(f"{'the same, ' * (name in GAINS)}{name}", f"{sum(comparison.promotions(seed)) / COMPARISONS:.1%}")
    if not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
