"""Eight servers of one model, of unequal speed: what a run gets out of them by load and by weight.

`python -m benchmarks.balance` prints the answers a second of each server alone, of all of them as one teacher with a
list of addresses (must be at least 0.95 of the sum), and of a pool with equal weights; then a whole run by load, from
its start to its last sample.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Thread

import refed_dspy
from benchmarks.runs import REFERENCES
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig

CAPACITY = 4
LATENCIES = (0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6)
"""Median seconds of each server's answers: it answers CAPACITY over that a second."""
WARM, MEASURED = 3.0, 12.0
"""Seconds of a run before, and while, answers are counted."""
ENOUGH = 100_000
"""Samples: more than are made in that time."""
WHOLE = 2000
"""Samples of the whole run."""


def teacher(servers: Sequence[SimulatedTeacher]) -> TeacherConfig:
    addresses = [server.base_url for server in servers]
    return TeacherConfig(model="sim/sim-model", api_base=addresses, concurrency=2 * CAPACITY, timeout=30)


def answers_a_second(servers: Sequence[SimulatedTeacher], given: object, folder: Path) -> float:
    """Answers a second of all servers together in a run by the teacher or pool `given`, once it is under way."""
    for server in servers:
        server.reset()
    minutes = (WARM + MEASURED + 1) / 60
    run = Thread(
        target=lambda: refed_dspy.synthesize(
            None, REFERENCES, size=ENOUGH, teacher=given, run_dir=folder, max_minutes=minutes
        )
    )
    run.start()
    time.sleep(WARM)
    before, began = answered(servers), time.monotonic()
    time.sleep(MEASURED)
    rate = (answered(servers) - before) / (time.monotonic() - began)
    run.join()
    return rate


def whole_run(servers: Sequence[SimulatedTeacher], folder: Path) -> float:
    """Answers a second over a run by load, from its start to its end."""
    before, began = answered(servers), time.monotonic()
    refed_dspy.synthesize(None, REFERENCES, size=WHOLE, teacher=teacher(servers), run_dir=folder)
    return (answered(servers) - before) / (time.monotonic() - began)


def answered(servers: Sequence[SimulatedTeacher]) -> int:
    return sum(int(server.stats()["answered"]) for server in servers)


def main() -> None:
    logging.getLogger("refed_dspy").setLevel(logging.ERROR)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        servers = [stack.enter_context(SimulatedTeacher(latency=each, sigma=0.2)) for each in LATENCIES]
        for server in servers:
            server.control(capacity=CAPACITY)
        alone = [
            answers_a_second([server], teacher([server]), Path(folder) / str(number))
            for number, server in enumerate(servers)
        ]
        print("alone:  " + ", ".join(f"{rate:.1f}" for rate in alone) + f"; sum {sum(alone):.1f} answers a second")
        by_load = answers_a_second(servers, teacher(servers), Path(folder) / "load")
        print(f"load:   {by_load:.1f}, {by_load / sum(alone):.2f} of the sum (must be at least 0.95)")
        by_weight = answers_a_second(servers, [teacher([server]) for server in servers], Path(folder) / "weights")
        print(f"weight: {by_weight:.1f}, {by_weight / sum(alone):.2f} of the sum")
        whole = whole_run(servers, Path(folder) / "whole")
        print(f"whole:  {whole:.1f}, {whole / sum(alone):.2f} of the sum, over a run of {WHOLE} samples")


if __name__ == "__main__":
    main()
