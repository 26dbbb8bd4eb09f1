"""The promotion rule on its own: 1,000 simulated comparisons without a gain, and 1,000 with a true gain.

`python -m benchmarks.promotion [SEED]`: each comparison has 8 references with 4 samples each.

Scores: a reference's difference is its own effect (normal, sd 0.08) plus the mean of its samples' noise (sd 0.12 each),
sd 0.10 in all. Noisier scores (0.10 and 0.15: 0.125 in all) are reported too. In simulated compiles
(benchmarks/optimization.py) the differences of held-out references have an sd of 0.01 to 0.04.

Outcomes: a sample wins, ties or loses (1, 0.5, 0); a reference's effect shifts wins against losses, symmetrically about
zero. Measured with few ties and with many; with many, a few references differ widely from the rest, which are all
alike.

How much can be expected: Student's test, the best there is for scores like the noisier ones, finds a gain of 0.15 from
8 references in 83% of comparisons when it promotes 2.5% of those without one. Sixteen references (the number a compile
holds out if it has them) make up for the noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from refed_dspy.metrics.intervals import Interval, is_gain, mean_interval, paired_gain

COMPARISONS, FEW = 1_000, 20
REFERENCES, SAMPLES = 8, 4
CALM, LOUD = (0.08, 0.12), (0.10, 0.15)
"""The sd of a reference's effect, and of a sample's noise."""
GAIN = 0.15
MOST_FALSE, LEAST_TRUE = 0.035, 18

Comparison = Callable[[np.random.Generator], Interval]


def scores(gain: float, noise: tuple[float, float] = CALM, references: int = REFERENCES) -> Comparison:
    """Scores that lie between 0 and 1 except for extreme draws, which are not clipped: that would change the model."""

    def compare(rng: np.random.Generator) -> Interval:
        old = rng.uniform(0.35, 0.5, references)
        samples = rng.normal(0, noise[1], (references, SAMPLES)).mean(axis=1)
        new = old + gain + rng.normal(0, noise[0], references) + samples
        return paired_gain(dict(enumerate(new.tolist())), dict(enumerate(old.tolist())))

    return compare


def outcomes(effect: float, ties: float) -> Comparison:
    """Odds of win, tie and loss are exp(e) : ties : exp(-e), where e is normal with sd `effect`."""

    def compare(rng: np.random.Generator) -> Interval:
        won = np.exp(rng.normal(0, effect, (REFERENCES, 1)))
        lost, drawn = 1 / won, rng.uniform(0, 1, (REFERENCES, SAMPLES))
        drawn *= won + lost + ties
        values = np.where(drawn < won, 1.0, np.where(drawn < won + lost, 0.0, 0.5)) - 0.5
        return mean_interval(values.ravel().tolist(), [i for i in range(REFERENCES) for _ in range(SAMPLES)])

    return compare


def promotions(compare: Comparison, seed: int) -> list[bool]:
    rng = np.random.default_rng(seed)
    return [is_gain(compare(rng)) for _ in range(COMPARISONS)]


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    nulls = {
        "no gain, scores": scores(0.0),
        "no gain, louder scores": scores(0.0, LOUD),
        "no gain, win/tie/loss": outcomes(effect=1, ties=1),
        "no gain, mostly ties": outcomes(effect=3, ties=20),
    }
    met = True
    print(f"{'comparisons':<36}{'promoted':>10}  must")
    for name, compare in nulls.items():
        share = sum(promotions(compare, seed)) / COMPARISONS
        met = met and share <= MOST_FALSE
        print(f"{name + f', {COMPARISONS:,}':<36}{share:>10.1%}  <= {MOST_FALSE:.1%}")
    gains = promotions(scores(GAIN), seed)
    promoted = sum(gains[:FEW])
    met = met and promoted >= LEAST_TRUE
    print(f"{f'true gain of {GAIN}, the first {FEW}':<36}{promoted:>10}  >= {LEAST_TRUE} of {FEW}")
    print(f"{f'true gain of {GAIN}, {COMPARISONS:,}':<36}{sum(gains) / COMPARISONS:>10.1%}")
    for references in (REFERENCES, 12, 16):
        promoted = sum(promotions(scores(GAIN, LOUD, references), seed))
        print(f"{f'the same, louder, {references} references':<36}{promoted / COMPARISONS:>10.1%}")
    if not met:
        sys.exit(1)


if __name__ == "__main__":
    main()
