"""Resident memory of one run at 2,000 and at 20,000 samples. Takes about three minutes.

`python -m benchmarks.memory`
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil

import refed_dspy
from benchmarks.runs import REFERENCES, teacher_config
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.teachers.progress import Progress

MARKS = (2_000, 20_000)


def main() -> None:
    seen: dict[int, float] = {}
    process = psutil.Process()

    def look(progress: Progress) -> None:
        for mark in MARKS:
            if progress.kept >= mark and mark not in seen:
                seen[mark] = process.memory_info().rss / 1e6

    with SimulatedTeacher(latency=0.05, sigma=0.5) as server, tempfile.TemporaryDirectory() as folder:
        started, cpu = time.monotonic(), time.process_time()
        made = refed_dspy.synthesize(
            None,
            REFERENCES,
            size=MARKS[-1] + 20,
            teacher=teacher_config(server, 40),
            run_dir=Path(folder) / "run",
            on_progress=look,
        )
        calls = server.stats()["requests"]
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    for mark, megabytes in seen.items():
        print(f"{mark} samples: {megabytes:.0f} MB resident")
    print(f"difference: {seen[MARKS[1]] - seen[MARKS[0]]:.0f} MB (must be <= 60)")
    print(f"{len(made.samples)} samples, {calls} calls in {seconds:.0f} s: {calls / seconds:.0f} calls/s")
    print(f"{1e3 * cpu / calls:.2f} ms client CPU a call")


if __name__ == "__main__":
    main()
