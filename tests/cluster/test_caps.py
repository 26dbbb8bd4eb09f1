"""One cap over all shards: no dollar over it by the server's bill, though a node dies."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.cluster_caps import capped
from benchmarks.nodes import Nodes
from benchmarks.simulated import SimulatedTeacher

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("seed", range(3))
def test_no_dollar_over_the_cap(seed: int, nodes: Nodes, server: SimulatedTeacher, tmp_path: Path) -> None:
    made = capped(nodes, server, tmp_path, random.Random(seed))
    assert made.over <= 0 and made.wrong == 0
    assert made.clean, made.told
