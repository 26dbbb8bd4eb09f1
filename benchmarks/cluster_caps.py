"""Runs on a cluster with random caps and faults, in each of which a node is killed: dollars over the cap."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.caps import faults
from benchmarks.cluster_runs import ClusterRun, Rows, ended
from benchmarks.nodes import Nodes
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.records import PICO

CONCURRENCY = 60
TEACHER = {"concurrency": CONCURRENCY, "timeout": 1.0, "retries": 2, "max_tokens": 1024}
FAILURES = {"max_failure_share": 1.0}


@dataclass(frozen=True)
class Capped:
    """How such a run ended. Picodollars; `used`: the part of the cap that the run's ledger charges."""

    max_cost: float
    billed: int
    charged: int
    samples: int
    size: int
    wrong: int
    told: str

    @property
    def over(self) -> float:
        """Picodollars over the cap, by the server's bill and by the ledger."""
        return max(self.billed, self.charged) - self.max_cost * PICO

    @property
    def clean(self) -> bool:
        """Whether it has its size, or ended at its cap."""
        return self.samples == self.size or "max_cost" in self.told

    @property
    def used(self) -> float:
        return self.charged / PICO / self.max_cost


def capped(nodes: Nodes, server: SimulatedTeacher, home: Path, rng: random.Random) -> Capped:
    """One such run, in the folder `home`."""
    size, max_cost = rng.randint(60, 200), round(10 ** rng.uniform(-2.0, -0.8), 5)
    nodes.have(2)
    server.control(faults=faults(rng), latency=0.1, sigma=0.8, seed=rng.randrange(1000))
    server.reset()
    run = ClusterRun(home, server, nodes.address, size, settings={"max_cost": max_cost, **FAILURES}, teacher=TEACHER)
    driver, kill_at = run.start(), rng.randint(20, 2 * size)
    while driver.poll() is None and run.requests() < kill_at:
        try:
            driver.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    nodes.kill(rng.choice(nodes.there))
    _, told = ended(driver)
    rows = Rows.of(run.folder)
    return Capped(
        max_cost, run.bill(), rows.charged, rows.samples, size, rows.wrong + rows.samples - rows.distinct, told
    )
