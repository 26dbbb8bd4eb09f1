"""Runs on a cluster, and one without: calls a second, and CPU a call, in the middle of the run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cluster_runs import ClusterRun, ended
from benchmarks.nodes import Nodes, processes, wait_until
from benchmarks.simulated import SimulatedTeacher

CAPACITY, LATENCY = 30, 0.3
"""A teacher answers so many at once, in so many seconds: 100 calls a second."""
LIMITED = {"capacity": CAPACITY, "concurrency": 60, "samples": 2_400}
FREE = {"capacity": None, "concurrency": 256, "samples": 6_000}
"""Teachers' capacity, and calls in flight and samples of one worker: at 100 calls a second, and as fast as it can."""
LEASES = 2
"""Leases of each worker: large ones, as a large run has, since at the end of each the calls in flight run dry."""


@dataclass(frozen=True)
class Speed:
    """Of the middle of a run: calls a second; milliseconds of CPU a call of the command, the coordinator and the
    workers, and of Ray's own processes."""

    calls: float
    driver: float
    coordinator: float
    workers: float
    ray: float

    @property
    def cpu(self) -> float:
        return self.driver + self.coordinator + self.workers


def measured(home: Path, nodes: Nodes | None, workers: int, load: dict[str, Any]) -> Speed:
    """A run with so many workers, and as many teachers; without `nodes` in one process. `load`: LIMITED or FREE."""
    samples = load["samples"] * workers
    if nodes is not None:
        nodes.have(workers)
    with ExitStack() as stack:
        servers = [stack.enter_context(SimulatedTeacher(latency=LATENCY, sigma=0)) for _ in range(workers)]
        for server in servers:
            server.control(capacity=load["capacity"])
        teacher = {"api_base": [server.base_url for server in servers], "concurrency": load["concurrency"]}
        run = ClusterRun(home, servers[0], nodes.address if nodes else "", samples, references=64, teacher=teacher)
        run.settings["shards"] = LEASES * workers
        driver = run.start()
        speed = _in_the_middle(driver, servers, samples // 4, 2 * samples)
        code, told = ended(driver, 200)
        assert code == 0, told
    return speed


def _in_the_middle(driver: subprocess.Popen[str], servers: Sequence[SimulatedTeacher], first: int, last: int) -> Speed:
    wait_until(lambda: _answered(servers) > first)
    parts = [[psutil.Process(driver.pid)], processes("Coordinator"), processes("worker-"), _of_ray()]
    began, calls, cpu = time.monotonic(), _answered(servers), [_cpu(part) for part in parts]
    wait_until(lambda: _answered(servers) > last, 200)
    made, seconds = _answered(servers) - calls, time.monotonic() - began
    each = [1e3 * (_cpu(part) - before) / made for part, before in zip(parts, cpu, strict=True)]
    return Speed(made / seconds, *each)


def _answered(servers: Sequence[SimulatedTeacher]) -> int:
    return sum(int(server.stats()["answered"]) for server in servers)


def _of_ray() -> list[psutil.Process]:
    """Ray's own processes, which are there without a run, too: they are this one's children."""
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if p.name() in {"raylet", "gcs_server"} or "Agent" in p.name()]


def _cpu(part: Sequence[psutil.Process]) -> float:
    """Seconds of CPU so far."""
    times = [process.cpu_times() for process in part if process.is_running()]
    return sum(each.user + each.system for each in times)
