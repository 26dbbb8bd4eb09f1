"""Runs on a Ray cluster on this machine: a node killed twice, caps, speed. Takes a quarter of an hour.

`python -m benchmarks.cluster [deaths|caps|speed|cpu] [RUNS]`; needs the extra `cluster`.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.cluster_caps import Capped, capped
from benchmarks.cluster_runs import CONCURRENCY, ClusterRun, Rows, ended
from benchmarks.cluster_speed import FREE, LIMITED, measured
from benchmarks.nodes import Nodes, wait_until
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.records import PICO

SIZE, CAPPED_RUNS = 5_000, 30


def deaths(home: Path) -> None:
    """A run of which a node is killed twice, at a third and at two thirds."""
    with Nodes(2) as nodes, SimulatedTeacher(latency=0.2, sigma=0.5) as server:
        run = ClusterRun(home / "deaths", server, nodes.address, SIZE, references=100)
        driver, began, in_flight = run.start(), time.monotonic(), list[int]()
        for third in (1, 2):
            wait_until(partial(run.has_sent, 2 * SIZE * third // 3), 300)
            in_flight.append(int(server.stats()["in_flight"]))
            nodes.kill(nodes.there[0])
            nodes.add()
        code, told = ended(driver, 500)
        rows = Rows.of(run.folder)
        again = run.requests() - rows.answers
    print(f"{rows.samples} samples of {SIZE}, {rows.distinct} distinct, {rows.wrong} with another text", end="; ")
    print(f"exit code {code}, {time.monotonic() - began:.0f} s")
    print(f"{again} calls sent again; at most {2 * CONCURRENCY} were in flight on the nodes killed twice", end=" ")
    print(f"(on both: {in_flight})")
    print(told if code else "", end="")


def caps(home: Path, runs: int = CAPPED_RUNS) -> None:
    """Random caps and faults; in each run a node is killed."""
    rng, made = random.Random(0), list[Capped]()
    with Nodes(2) as nodes, SimulatedTeacher() as server:
        for number in range(runs):
            made.append(capped(nodes, server, home / f"caps{number}", rng))
            if not made[-1].clean or made[-1].over > 0:
                print(made[-1], file=sys.stderr)
    short = [run for run in made if run.samples < run.size]
    share = sum(run.used for run in short) / max(1, len(short))
    print(f"{runs} runs, {len(short)} ended at their cap, with {share:.0%} of it used on average")
    print(f"dollars over the cap, the largest of all: {max(0.0, *(run.over for run in made)) / PICO:g} (must be 0)")
    print(f"{sum(not run.clean for run in made)} ended otherwise, {sum(run.wrong for run in made)} rows wrong or twice")


def speed(home: Path) -> None:
    """1, 2 and 4 workers, each with a teacher of its own that allows 100 calls a second."""
    one = 0.0
    with Nodes(1) as nodes:
        for workers in (1, 2, 4):
            found = measured(home / f"workers{workers}", nodes, workers, LIMITED)
            one = one or found.calls
            print(
                f"{workers} workers: {found.calls:.0f} calls/s, {found.calls / one:.2f} x one's; {found.cpu:.2f} ms CPU"
            )


def cpu(home: Path) -> None:
    """One process, and one worker on a cluster, as fast as they can."""
    alone = measured(home / "alone", None, 1, FREE)
    print(f"one process: {alone.calls:.0f} calls/s, {alone.cpu:.2f} ms CPU a call")
    with Nodes(1) as nodes:
        found = measured(home / "worker", nodes, 1, FREE)
    print(
        f"one worker: {found.calls:.0f} calls/s, {found.cpu:.2f} ms CPU a call, {found.cpu / alone.cpu:.2f} x", end="; "
    )
    print(f"driver {found.driver:.3f}, coordinator {found.coordinator:.3f}; Ray's own processes {found.ray:.2f}")


PARTS: dict[str, Callable[..., None]] = {"deaths": deaths, "caps": caps, "speed": speed, "cpu": cpu}


def main() -> None:
    named, more = sys.argv[1:2], map(int, sys.argv[2:3])
    with tempfile.TemporaryDirectory() as home:
        for name, part in PARTS.items():
            if name in (named or PARTS):
                part(Path(home), *more)


if __name__ == "__main__":
    main()
