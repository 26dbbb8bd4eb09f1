"""What tracking in MLflow costs a run: client CPU a call with tracking and without, side by side.

`python -m benchmarks.tracking [--samples 2000] [--rounds 3]`: one process a run, a server that answers after 100 ms,
and MLflow's local SQLite store, made beforehand. Three kinds of run alternate: not tracked, tracked by the default (an
update a minute), and with an update every 5 s. Imports, the first connection and a run of 50 samples come first and are
reported as start-up. A row is the least of its rounds, since other work on the machine only adds to it. `logging` is
the CPU of the tracking thread, as a share of the run's; it decides where the rounds differ too much to be compared.
Exits with 1 where tracking costs 5% or more.
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

from benchmarks.runs import fresh_run
from benchmarks.simulated import SimulatedTeacher

MOST = 0.05
CONCURRENCY = 24  # slow enough for several updates in a run
WARM = 50
INTERVALS = {"not tracked": None, "an update a minute": 60.0, "an update every 5 s": 5.0}
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


@dataclass(frozen=True)
class Row:
    """One run: CPU seconds of start-up, of the run, and within it of logging to MLflow; its calls, its updates to
    MLflow, and wall seconds."""

    startup: float
    cpu: float
    logging: float
    calls: int
    updates: int
    seconds: float

    @property
    def milliseconds_a_call(self) -> float:
        """CPU milliseconds a call."""
        return 1e3 * self.cpu / self.calls


class Elsewhere:
    """A simulated server that another process started, with what `fresh_run` needs of one."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def reset(self) -> None:
        """Does nothing: this process counts its own calls."""


def child(base_url: str, samples: int, interval: float | None, folder: Path) -> Row:
    """The measured process."""
    from refed_dspy.runs import synthesize as synthesis
    from refed_dspy.tracking import run as runs

    updates, copy = list[float](), runs.copy_run

    def counted(*args: Any) -> None:
        before = time.thread_time()
        copy(*args)
        updates.append(time.thread_time() - before)

    vars(synthesis)["copy_run"] = counted  # the counting itself costs nothing measurable
    synthesis.TRACKING_INTERVAL = interval or synthesis.TRACKING_INTERVAL
    os.environ["REFED_TRACK"] = "false" if interval is None else "true"
    server: Any = Elsewhere(base_url)
    fresh_run(server, folder / "warm", WARM, CONCURRENCY)
    updates.clear()
    startup, began = time.process_time(), time.monotonic()
    made = fresh_run(server, folder / "run", samples, CONCURRENCY)
    cpu = time.process_time() - startup
    calls = sum(use["calls"] for use in made.usage.values())
    return Row(startup, cpu, sum(updates), calls, len(updates), time.monotonic() - began)


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
        if (interval is not None) != bool(row.updates) or (interval and "was not told" in done.stderr):
            raise RuntimeError(f"MLflow got {row.updates} updates: {done.stderr}")
        return row


def prepared(folder: Path) -> Path:
    """An empty MLflow database to copy for each run, since making one takes seconds."""
    script = "import sys, mlflow; mlflow.MlflowClient(tracking_uri=sys.argv[1]).search_experiments()"
    made = folder / "template.db"
    command = [sys.executable, "-c", script, f"sqlite:///{made}"]
    subprocess.run(command, env={**os.environ, **QUIET}, check=True, capture_output=True)
    return made


def report(rows: dict[str, list[Row]]) -> list[str]:
    """Print the table. Returns the musts that are missed."""
    print("                    ms CPU a call   more  logging  updates  start-up CPU   run")
    costs = {name: [row.milliseconds_a_call for row in rounds] for name, rounds in rows.items()}
    least = {name: min(rounds, key=lambda row: row.milliseconds_a_call) for name, rounds in rows.items()}
    spread = max(max(values) / min(values) - 1 for values in costs.values())
    base, missed = least["not tracked"].milliseconds_a_call, []
    for name, row in least.items():
        more = row.milliseconds_a_call / base - 1
        share, wall = row.logging / row.cpu, f"{row.seconds:.0f} s"
        figures = f"{row.milliseconds_a_call:13.3f} {more:6.1%} {share:8.1%} {row.updates:8} {row.startup:11.1f} s"
        print(f"{name:19} {figures} {wall:>6}")
        if (extra := share if spread >= MOST else more) >= MOST:
            missed.append(f"{name}: {extra:.1%} more CPU (< {MOST:.0%})")
    noisy = "" if spread < MOST else ", too much to compare them"
    print(f"rounds of a kind differ by up to {spread:.1%}{noisy}; load {os.getloadavg()[0]:.1f}")
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    for name, kind in (("child", str), ("folder", Path), ("interval", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(vars(child(options.child, options.samples, options.interval, options.folder))))
        return
    rows: dict[str, list[Row]] = defaultdict(list)
    with SimulatedTeacher(latency=0.1, sigma=0.0) as server, tempfile.TemporaryDirectory() as folder:
        template = prepared(Path(folder))
        for _ in range(options.rounds):
            for name, interval in INTERVALS.items():
                server.reset()
                rows[name].append(measure(server, options.samples, interval, template))
    if missed := report(rows):
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
