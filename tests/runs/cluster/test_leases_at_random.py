"""Whatever happens to a cluster, the grants add up and the run ends."""

from __future__ import annotations

import random
from collections import Counter

from tests.runs.cluster.lease_books import InMemory
from tests.runs.cluster.simulated_cluster import Settings, SimulatedCluster


def simulated(seed: int) -> SimulatedCluster:
    rng = random.Random(seed)
    shards, least = rng.randint(1, 8), rng.randint(1, 50)
    size = rng.randint(1, 120)
    max_cost = rng.choice([None, rng.randint(least, 3 * size * least)])
    max_calls = rng.choice([None, None, rng.randint(1, 4 * size)])
    settings = Settings(size, max_cost, max_calls, least)
    return SimulatedCluster(InMemory(shards, settings), settings, shards, seed)


def test_whatever_happens_it_adds_up_and_ends() -> None:
    outcomes = Counter[str]()
    for seed in range(400):
        cluster = simulated(seed)
        try:
            cluster.run(steps=80)
            outcomes[cluster.outcome()] += 1
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
    assert min(outcomes[how] for how in ("complete", "at a cap", "short")) > 40, outcomes
