"""The forecast of a large run: what is still to come costs what the last samples did, each.

Simulating the plan of a million samples takes minutes, and by then a run goes steadily: what a sample takes, with the
failures, the drops and the feedback behind it, is seen in the calls made since an earlier sample.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

from refed_dspy.ledger.history import Usage, calls_between, last_call_about, sums_of_usage
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.runs.stage_weights import StageWeights

ENOUGH, RECENT, BLOCKS = 10_000, 5_000, 20
"""Samples from which a run counts as large; those that are looked at; and the parts whose costs are compared."""


@dataclass(frozen=True)
class RecentUse:
    """What `samples` recent samples took, and what all calls so far did. `blocks`: picodollars of each of BLOCKS equal
    parts of the samples; `ahead`: of one sample, on average."""

    samples: int
    used: Usage
    whole: Usage
    ahead: float
    blocks: tuple[float, ...]
    stages: dict[str, float]
    """Stage → calls a sample."""

    @classmethod
    def read(cls, ledger: Ledger, weights: StageWeights, samples: int = RECENT) -> RecentUse:
        """Of the last `samples` of a run that has more."""
        edges = [last_call_about(ledger, ledger.kept() - samples + i * samples // BLOCKS) for i in range(BLOCKS + 1)]
        used, costs, stages = list[Usage](), list[float](), defaultdict[str, float](float)
        for after, until in pairwise(edges):
            cost = 0.0
            for stage, model, endpoint, usage in calls_between(ledger, after, until):
                cost += weights.cost(weights.answerer_of(stage, model, endpoint), usage)
                stages[stage] += usage.calls / samples
                used.append(usage)
            costs.append(cost)
        whole = Usage.total([Usage(), *sums_of_usage(ledger)])
        return cls(samples, Usage.total([Usage(), *used]), whole, sum(costs) / samples, tuple(costs), dict(stages))

    def spread(self, unmodelled: float, confidence: float) -> float:
        """Half the interval as a share of what is to come: Student's, over the blocks."""
        from scipy.special import stdtrit

        mean = fmean(self.blocks)
        deviation = stdev(self.blocks) / mean / math.sqrt(BLOCKS) if mean else 1.0
        return float(stdtrit(BLOCKS - 1, (1 + confidence) / 2)) * math.hypot(deviation, unmodelled)
