"""A round of chaos on a cluster: a run with a random cap and random faults, in which a node is killed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from benchmarks.cluster_caps import capped
from benchmarks.nodes import Nodes
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.records import PICO


def possible() -> bool:
    """Whether Ray is here."""
    return find_spec("ray") is not None


def broken(seed: int, home: Path) -> Iterator[str]:
    """Such a run in the folder `home`: each promise that was not kept."""
    with SimulatedTeacher(seed=seed) as server, Nodes(2) as nodes:
        run = capped(nodes, server, home, random.Random(seed))
    if run.over > 0:
        yield f"max_cost {run.max_cost} is passed by {run.over / PICO:g} dollars"
    if run.billed > run.charged:
        yield f"billed {run.billed / PICO:g} dollars, in the books {run.charged / PICO:g}"
    if run.wrong:
        yield f"{run.wrong} samples are not distinct, or have another text"
    if not run.clean:
        yield f"{run.samples} of {run.size} samples: {run.told.strip()[-300:]}"
    if "Traceback" in run.told:
        yield "a traceback"
