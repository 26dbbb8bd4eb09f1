"""How good the forecasts of the time left are: what progress said after 1, 5, 25 and 75% of the samples, and the truth.

python -m benchmarks.forecasts [--size N] [--concurrency N] [--latency SECONDS]
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig, synthesize
from refed_dspy.teachers.progress import Progress

AT = (0.0, 0.01, 0.05, 0.25, 0.75)
"""Shares of the samples; 0: after the first one."""


class Watcher:
    """Notes what would be said of the time left whenever a share of AT is reached."""

    def __init__(self) -> None:
        self.said: dict[float, tuple[float, float, float | None]] = {}
        """Share → the moment; all the time so far as the pace; the forecast."""
        self.ended = threading.Event()
        self.began = time.monotonic()

    def watch(self, progress: Progress) -> None:
        self.began = time.monotonic()
        threading.Thread(target=self._note, args=(progress,), daemon=True).start()

    def _note(self, progress: Progress) -> None:
        while not self.ended.wait(0.05):
            for share in AT:
                if share not in self.said and progress.kept >= max(1, share * progress.size):
                    now = time.monotonic()
                    even = (now - self.began) / progress.kept * (progress.size - progress.kept)
                    self.said[share] = now, even, progress.seconds_left()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.5)
    options = parser.parse_args()
    watcher = Watcher()
    with SimulatedTeacher(latency=options.latency) as server, tempfile.TemporaryDirectory() as home:
        teacher = TeacherConfig(model="sim/m", api_base=server.base_url, concurrency=options.concurrency)
        began = time.monotonic()
        synthesize(size=options.size, teacher=teacher, run_dir=Path(home), track=False, on_progress=watcher.watch)
        end = time.monotonic()
        watcher.ended.set()
    print(f"{options.size} samples, {options.concurrency} at once, {options.latency} s a call: {end - began:.0f} s")
    print("after   truth  all the time so far  forecast")
    for share, (moment, even, left) in sorted(watcher.said.items()):
        said = "…" if left is None else f"{left:.0f} s"
        print(f"{share:5.0%}  {end - moment:4.0f} s  {even:17.0f} s  {said:>8}")


if __name__ == "__main__":
    main()
