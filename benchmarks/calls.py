"""Calls paid for and time taken: 100 and 800 samples from 40 references, 40 calls at once, 200 ms answers. The 100 are
made in both ways: spread over all references, and twenty of each.

`python -m benchmarks.calls`
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.runs import fresh_run
from benchmarks.simulated import SimulatedTeacher

CONCURRENCY = 40


def main() -> None:
    with SimulatedTeacher(latency=0.2, sigma=0.5) as server, tempfile.TemporaryDirectory() as folder:
        for each, must in ((None, 320), (20, 240)):
            spans, calls = [], []
            for _ in range(5):
                made = fresh_run(server, Path(folder) / "small", 100, per_reference=each)
                stats = server.stats()
                spans.append(stats["span_s"])
                calls.append(stats["requests"])
            used = f"100 samples of {made.status['opened']} references"
            print(f"{used}: {max(calls)} calls (must be <= {must})")
            at_most = "" if each is None else " (<= 2.8)"
            print(f"{used}: {statistics.median(spans):.2f} s, median of 5: {[f'{s:.2f}' for s in spans]}{at_most}")
        cpu = time.process_time()
        fresh_run(server, Path(folder) / "large", 800)
        cpu = time.process_time() - cpu
        stats = server.stats()
        ratio = stats["span_s"] / (stats["latency_sum_s"] / CONCURRENCY)
        print(f"800 samples: span {stats['span_s']:.2f} s, {ratio:.3f} of the latencies' sum / 40 (<= 1.12)")
        print(f"800 samples: {stats['requests']} calls, {1e3 * cpu / stats['requests']:.2f} ms client CPU a call")


if __name__ == "__main__":
    main()
