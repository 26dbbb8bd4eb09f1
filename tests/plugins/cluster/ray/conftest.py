"""A cluster of a head and two nodes on this machine, and runs on it: `make cluster`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster_runs import ClusterRun
from benchmarks.nodes import Nodes
from benchmarks.simulated import SimulatedTeacher

LATENCY, SIGMA = 0.3, 0.4
Begin = Callable[..., ClusterRun]


@pytest.fixture(scope="session")
def started_nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    with Nodes(2) as nodes:
        yield nodes


@pytest.fixture
def nodes(started_nodes: Nodes) -> Nodes:
    """Two nodes."""
    started_nodes.have(2)
    return started_nodes


@pytest.fixture
def run(nodes: Nodes, server: SimulatedTeacher, tmp_path: Path) -> Begin:
    """Makes a run of so many samples on the cluster, with answers that take a moment."""

    def make(size: int, **more: Any) -> ClusterRun:
        server.control(latency=LATENCY, sigma=SIGMA)
        return ClusterRun(tmp_path, server, nodes.address, size, **more)

    return make
