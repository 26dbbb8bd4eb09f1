"""Ctrl-C with MLflow on and 32 calls in flight: seconds to the prompt, and what is left behind.

`python -m benchmarks.stopping [--tries 10] [--cases synth,pause]`: each try is a command in a process group of its own
and a MLflow store of its own. 40 answers come at once, the next take a minute; Ctrl-C goes to the whole group a random
0 to 4 s after 32 calls are in flight. `pause` stops while the endpoint asks for a pause of a minute, `batch` while a
batch is waited for. Prints the seconds to the word "stopping" and to the end, and what MLflow says of the run. Exits
with 1 where a try takes longer than 2.5 s, does not end with 130, loses an answer or leaves a call unsettled.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.runs import REFERENCES
from benchmarks.simulated import SimulatedTeacher
from benchmarks.tracking import QUIET, prepared

MOST = 2.5
IN_FLIGHT, FIRST, SLOW = 32, 40, 60.0
LATEST = 4.0
"""Seconds after which Ctrl-C comes at the latest: MLflow is being imported, or just was."""
REFED = [sys.executable, "-m", "refed_dspy.cli"]


@dataclass(frozen=True)
class Case:
    """A command, what the server does besides answering, and when it is stopped."""

    words: str
    settings: dict[str, Any] = field(default_factory=dict)
    ready: Callable[[dict[str, Any]], bool] = lambda stats: stats["in_flight"] >= IN_FLIGHT


SYNTH = "synth --references references.jsonl --size 5000 --run-dir out --teacher"
CASES = {
    "synth": Case(f"{SYNTH} teacher.yaml"),
    "compare": Case(
        "compare --references references.jsonl --teacher teacher.yaml --judge judge.yaml --size 500"
        " --config compare.yaml --out out"
    ),
    "filter": Case("filter pairs.jsonl --filter judge --judge teacher.yaml --config filter.yaml --out out"),
    "compile": Case(
        "compile --references references.jsonl --teacher teacher.yaml --judge judge.yaml"
        " --config compile.yaml --out out"
    ),
    "batch": Case(f"{SYNTH} batch.yaml", {"batch_seconds": SLOW}, lambda stats: stats["batches"] > 0),
    "pause": Case(
        f"{SYNTH} teacher.yaml",
        {"faults": {"429": 1.0}, "retry_after": SLOW},
        lambda stats: stats["by_status"].get("429", 0) > 0,
    ),
}


@dataclass(frozen=True)
class Try:
    """One try: seconds from Ctrl-C to the word "stopping" (None: never) and to the end, and what was left."""

    said: float | None
    seconds: float
    code: int
    lost: int
    unsettled: int
    mlflow: str
    last_line: str

    @property
    def bad(self) -> bool:
        return self.seconds > MOST or self.code != 130 or bool(self.lost or self.unsettled)


def write_home(home: Path, server: SimulatedTeacher) -> None:
    """The files that the commands name."""
    (home / "references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in REFERENCES))
    pairs = [
        {**row, "instruction": f"{row['instruction']} ({n})", "plain": "Short."} for n in range(5) for row in REFERENCES
    ]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    teacher = {"model": "sim/sim-model", "api_base": server.base_url, "concurrency": IN_FLIGHT, "timeout": 120}
    sizes = {"optimizer": "gepa", "train": 12, "validation": 12, "test": 12, "evaluations": 100, "threads": IN_FLIGHT}
    files = {
        "teacher.yaml": teacher,
        "judge.yaml": {**teacher, "model": "sim/judge"},
        "batch.yaml": {**teacher, "mode": "batch", "batch": {"quiet": 0.2, "poll": 0.2}},
        "compare.yaml": {"programs": {"a": "seed-only", "b": "instruction-only"}, "against": "b"},
        "compile.yaml": sizes,
        "filter.yaml": {"columns": {"plain": "plain"}},
    }
    for name, settings in files.items():
        (home / name).write_text(json.dumps(settings))


def attempt(case: Case, server: SimulatedTeacher, store: Path, wait: float) -> Try:
    """Run the case's command in an own home, and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_home(home, server)
        shutil.copy(store, home / "mlflow.db")
        server.control(latency=0.02, sigma=0.0, faults={}, retry_after=None)
        server.reset()
        environment = {**os.environ, **QUIET, "REFED_TRACK": "true", "HOME": folder}
        environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
        process = subprocess.Popen(
            [*REFED, *case.words.split()], cwd=home, env=environment, text=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, process_group=0, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        lines = list[tuple[float, str]]()
        reader = threading.Thread(target=_read, args=(process, lines))
        reader.start()
        try:
            _until(process, lambda: server.stats()["answered"] >= FIRST or case.ready(server.stats()))
            server.control(**{"latency": SLOW, **case.settings})
            _until(process, lambda: case.ready(server.stats()))
            time.sleep(wait)
            stopped = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
            seconds = time.monotonic() - stopped
            reader.join()
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {lines[-1:]}") from None
        finally:
            process.kill()
        said = next((at - stopped for at, line in lines if "stopping" in line), None)
        ok, unsettled = left(home / "out")
        stats = server.stats()
        lost = stats["answered"] + stats["batch_requests"] - ok
        return Try(said, seconds, process.returncode, lost, unsettled, told(home / "mlflow.db"), lines[-1][1])


def _read(process: subprocess.Popen[str], lines: list[tuple[float, str]]) -> None:
    assert process.stderr is not None
    lines.extend((time.monotonic(), line.rstrip()) for line in process.stderr)


def _until(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not ready():
        if process.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"the command ended, or never came so far (exit code {process.poll()})")
        time.sleep(0.05)


def left(folder: Path) -> tuple[int, int]:
    """Calls with an answer in the ledger; calls that no one settled (a batch's wait for the next start)."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        counts = Counter(dict(db.execute("SELECT outcome, count(*) FROM calls GROUP BY outcome")))
        batched = db.execute("SELECT count(*) FROM batches").fetchone()[0]
    return counts["ok"], 0 if batched else counts["sent"]


def told(store: Path) -> str:
    """How the runs stand at MLflow."""
    with closing(sqlite3.connect(store)) as db:
        return (
            ", ".join(status for (status,) in db.execute("SELECT status FROM runs WHERE status != 'FINISHED'")) or "–"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--cases", default=",".join(CASES))
    options = parser.parse_args()
    rng, bad = random.Random(0), 0
    print(f"{'case':9}{'said':>7}{'end':>7}  code  lost  open  MLflow says; last line")
    with SimulatedTeacher() as server, tempfile.TemporaryDirectory() as folder:
        store = prepared(Path(folder))
        for name in options.cases.split(","):
            for _ in range(options.tries):
                one = attempt(CASES[name], server, store, rng.uniform(0, LATEST))
                bad += one.bad
                said = "never" if one.said is None else f"{one.said:.2f}"
                figures = f"{one.seconds:7.2f}  {one.code:4}  {one.lost:4}  {one.unsettled:4}"
                print(f"{name:9}{said:>7}{figures}  {one.mlflow}; {one.last_line}", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}")
    if bad:
        sys.exit(f"missed: {bad} tries took more than {MOST} s, lost something or ended otherwise")


if __name__ == "__main__":
    main()
