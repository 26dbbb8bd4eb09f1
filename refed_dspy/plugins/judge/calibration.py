"""Whether a judge's probabilities can be believed: Brier score, expected calibration error, and a reliability curve.

A comparison has no order, so each is described from the side that the judge prefers: its confidence (0.5 to 1), and how
often people preferred that side, too (a tie is half).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from refed_dspy.metrics.intervals import Interval, share_interval

BINS = 10
"""Bins of equal width between a confidence of 0.5 and 1."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Comparisons of about one confidence: their mean confidence, and the share in which people agreed."""

    confidence: float
    agreed: Interval


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what people said.

    `brier`: the mean of (probability - outcome) squared; 0.25 for a judge that always says one half, where people know
    no ties. `error`: the mean over comparisons of |confidence - share in which people agreed|, of each bin. Chance
    alone makes it larger the fewer comparisons there are.
    """

    brier: Interval
    error: float
    bins: tuple[ReliabilityBin, ...]


def calibration(
    probabilities: Sequence[float], outcomes: Sequence[float], clusters: Sequence[Hashable], seed: int = 0
) -> Calibration:
    """Of probabilities that the first answer is preferred, and `outcomes`: 1 where people preferred it, 0.5 for a tie,
    0 where they preferred the other. Means are over `clusters`, as those of `mean_interval`.

    Raises ValueError without a comparison, for a probability outside 0 to 1, and for lists of two lengths.
    """
    if not all(0 <= probability <= 1 for probability in probabilities):
        raise ValueError("a probability is not between 0 and 1")
    squares = [(p - outcome) ** 2 for p, outcome in zip(probabilities, outcomes, strict=True)]
    grouped: defaultdict[int, list[tuple[float, float, Hashable]]] = defaultdict(list)
    for p, outcome, cluster in zip(probabilities, outcomes, clusters, strict=True):
        confidence, agreed = (p, outcome) if p >= 0.5 else (1 - p, 1 - outcome)
        grouped[min(BINS - 1, int((confidence - 0.5) * 2 * BINS))].append((confidence, agreed, cluster))
    bins = tuple(_bin(members, seed) for _, members in sorted(grouped.items()))
    distances = [abs(math.fsum(c - a for c, a, _ in members)) for members in grouped.values()]
    return Calibration(share_interval(squares, clusters, seed=seed), math.fsum(distances) / len(squares), bins)


def _bin(members: Sequence[tuple[float, float, Hashable]], seed: int) -> ReliabilityBin:
    agreed = share_interval([agreed for _, agreed, _ in members], [cluster for _, _, cluster in members], seed=seed)
    return ReliabilityBin(math.fsum(confidence for confidence, _, _ in members) / len(members), agreed)
