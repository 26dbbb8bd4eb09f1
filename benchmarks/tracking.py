"""What telling MLflow costs a run: client CPU a call with tracking and without, side by side.

`python -m benchmarks.tracking [--samples 2000] [--rounds 3]`: one process a run, a server that answers after 100 ms,
and MLflow's local SQLite store, made beforehand. Not tracked, tracked as it is (a word a minute), and with a word every
5 s, in turn. Imports, the first connection and a run of 50 samples come before, and are told apart as start-up. A row
is the least of its rounds: what else the machine does only adds to it. `telling` is the CPU of the thread that tells,
as a share of the run's: it is what counts where the rounds differ too much to compare them. Exits with 1 where tracking
costs 5% or more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runs import one_run
from benchmarks.simulated import SimulatedTeacher

MOST = 0.05
CONCURRENCY = 24  # slow enough for several words in a run
WARM = 50
INTERVALS = {"not tracked": None, "a word a minute": 60.0, "a word every 5 s": 5.0}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


@dataclass(frozen=True)
class Row:
    """One run: CPU (s) of start-up, of the run, and of it in telling MLflow; the calls it made, how often MLflow was
    told, and wall seconds."""

    startup: float
    cpu: float
    telling: float
    calls: int
    words: int
    seconds: float

    @property
    def each(self) -> float:
        """Milliseconds of CPU a call."""
        return 1e3 * self.cpu / self.calls


class Elsewhere:
    """A simulated server that another process started, as `one_run` needs it."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def reset(self) -> None:
        """Counts are this process's own affair: see `calls`."""


def child(base_url: str, samples: int, interval: float | None, folder: Path) -> Row:
    """The measured process."""
    from refed_dspy.runs import synthesize as synthesis
    from refed_dspy.tracking import run as runs

    words, copy = list[float](), runs.copy_run

    def counted(*given: Any) -> None:
        before = time.thread_time()
        copy(*given)
        words.append(time.thread_time() - before)

    vars(synthesis)["copy_run"] = counted  # counting costs nothing that could be seen
    synthesis.EVERY = interval or synthesis.EVERY
    os.environ["REFED_TRACK"] = "false" if interval is None else "true"
    server: Any = Elsewhere(base_url)
    one_run(server, folder / "warm", WARM, CONCURRENCY)
    words.clear()
    startup, began = time.process_time(), time.monotonic()
    made = one_run(server, folder / "run", samples, CONCURRENCY)
    cpu = time.process_time() - startup
    calls = sum(use["calls"] for use in made.usage.values())
    return Row(startup, cpu, sum(words), calls, len(words), time.monotonic() - began)


def measure(server: SimulatedTeacher, samples: int, interval: float | None, template: Path) -> Row:
    """One run in a process of its own, with a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "mlflow.db"
        shutil.copy(template, store)
        command = [sys.executable, "-m", "benchmarks.tracking", "--child", server.base_url, "--samples", str(samples)]
        command += ["--folder", folder] + ([] if interval is None else ["--interval", str(interval)])
        environment = {**os.environ, **QUIET, "MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        row = Row(**json.loads(done.stdout.splitlines()[-1]))
        if (interval is not None) != bool(row.words) or (interval and "was not told" in done.stderr):
            raise RuntimeError(f"MLflow was told {row.words} times: {done.stderr}")
        return row


def prepared(folder: Path) -> Path:
    """An empty MLflow database: making one takes seconds, once for each store and not for each run."""
    script = "import sys, mlflow; mlflow.MlflowClient(tracking_uri=sys.argv[1]).search_experiments()"
    made = folder / "template.db"
    command = [sys.executable, "-c", script, f"sqlite:///{made}"]
    subprocess.run(command, env={**os.environ, **QUIET}, check=True, capture_output=True)
    return made


def report(rows: dict[str, list[Row]]) -> list[str]:
    """Print the table. Returns what is missed."""
    print("                    ms CPU a call   more  telling  words  start-up CPU   run")
    least = {name: min(found, key=lambda row: row.each) for name, found in rows.items()}
    spread = max(max(r.each for r in found) / min(r.each for r in found) - 1 for found in rows.values())
    base, missed = least["not tracked"].each, []
    for name, row in least.items():
        more = row.each / base - 1
        share, wall = row.telling / row.cpu, f"{row.seconds:.0f} s"
        print(f"{name:18} {row.each:14.3f} {more:6.1%} {share:8.1%} {row.words:6} {row.startup:11.1f} s {wall:>6}")
        if (costs := share if spread >= MOST else more) >= MOST:
            missed.append(f"{name}: {costs:.1%} more CPU (< {MOST:.0%})")
    noisy = "" if spread < MOST else ", too much to compare them"
    print(f"rounds of a kind differ by up to {spread:.1%}{noisy}; load {os.getloadavg()[0]:.1f}")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    for name, kind in (("child", str), ("folder", Path), ("interval", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(vars(child(given.child, given.samples, given.interval, given.folder))))
        return
    rows: dict[str, list[Row]] = defaultdict(list)
    with SimulatedTeacher(latency=0.1, sigma=0.0) as server, tempfile.TemporaryDirectory() as folder:
        template = prepared(Path(folder))
        for _ in range(given.rounds):
            for name, interval in INTERVALS.items():
                server.reset()
                rows[name].append(measure(server, given.samples, interval, template))
    if missed := report(rows):
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
