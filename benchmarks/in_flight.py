"""Client CPU a call, and memory, with few and with thousands of calls in flight.

`python -m benchmarks.in_flight [SAMPLES]`: 20,000 samples with 256 and with 16,384 at once, in a process each.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import refed_dspy
from benchmarks.large import references
from benchmarks.runs import teacher_config
from benchmarks.simulated import SimulatedTeacher


def measure(samples: int, in_flight: int) -> None:
    """One run. A server that takes longer to answer than the client to ask keeps so many calls in flight."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    latency = 0.1 if in_flight < 1_000 else 2.0
    with (
        SimulatedTeacher(latency=latency, sigma=0.3, response_words=12) as server,
        tempfile.TemporaryDirectory() as home,
    ):
        teacher = teacher_config(server, in_flight).model_copy(update={"timeout": 120})
        source, cpu = references(Path(home), 2 * samples), time.process_time()
        refed_dspy.synthesize(
            None, source, size=samples, teacher=teacher, run_dir=Path(home) / "run", progress=False
        )  # fmt: skip
        cpu, calls = time.process_time() - cpu, server.stats()["requests"]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"{in_flight:>6} in flight: {1e3 * cpu / calls:.2f} ms CPU a call, {memory:.0f} MB", flush=True)


def main() -> None:
    samples = sys.argv[1] if len(sys.argv) > 1 else "20000"
    for in_flight in ("256", "16384") * 2:
        subprocess.run([sys.executable, "-m", "benchmarks.in_flight", samples, in_flight], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
