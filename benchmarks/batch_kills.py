"""SIGKILL a run 20 times while it waits for a batch, and 20 times at any moment, resumed each time: what is paid twice?

`python -m benchmarks.batch_kills [SEED [wait|any]]`
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.runs import REFERENCES
from benchmarks.simulated import SimulatedTeacher

KILLS, SIZE, SECONDS = 20, 480, 6.0
"""SECONDS is how long a batch takes."""


def waiting(run_dir: Path) -> bool:
    """Whether a batch is under way and the service has given it a name."""
    if not (run_dir / "ledger.sqlite").exists():
        return False
    with sqlite3.connect(run_dir / "ledger.sqlite") as db:
        try:
            return db.execute("SELECT 1 FROM batches WHERE state IS NULL AND name IS NOT NULL").fetchone() is not None
        except sqlite3.OperationalError:
            return False


def settled(run_dir: Path) -> tuple[int, int, int]:
    """Counts of samples, of answers, and of calls charged without an answer."""
    with sqlite3.connect(run_dir / "ledger.sqlite") as db:
        samples, answers = (
            db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("samples", "answers")
        )
        lost = db.execute("SELECT count(*) FROM calls WHERE outcome != 'ok' AND cost > 0").fetchone()[0]
    return samples, answers, lost


def killed(server: SimulatedTeacher, home: Path, rng: random.Random, *, in_wait: bool) -> None:
    """Kill one run `KILLS` times, then let it finish. Prints the figures."""
    run_dir = home / ("wait" if in_wait else "any")
    command = [sys.executable, "-m", "refed_dspy.cli", "synth", "--references", str(home / "references.jsonl")]
    command += ["--size", str(SIZE), "--run-dir", str(run_dir), "--teacher", str(home / "teacher.yaml")]
    server.reset()
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if in_wait:
            while not waiting(run_dir) and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(2.0, 4.0))  # long enough for a start to reach the batch of the one before
        else:
            time.sleep(rng.uniform(1.5, 6.0))
        if process.poll() is not None:
            break
        if in_wait and not waiting(run_dir):
            process.kill()  # it was between two batches: not counted
            process.wait()
            continue
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    samples, answers, lost = settled(run_dir)
    stats = server.stats()
    print(f"{kills} kills {'while a batch was waited for' if in_wait else 'at any moment'}:")
    print(f"  requests paid twice: {stats['batch_repeated']} (must be 0)")
    print(f"  {stats['batch_requests']} requests in {stats['batches']} batches, {answers} answers in the ledger")
    print(f"  {samples} samples of {SIZE}; calls charged without an answer: {lost}")


def main() -> None:
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    with SimulatedTeacher(latency=0, sigma=0) as server, tempfile.TemporaryDirectory() as folder:
        server.control(batch_seconds=SECONDS)
        home = Path(folder)
        (home / "references.jsonl").write_text("\n".join(json.dumps(r) for r in REFERENCES[:8]))
        teacher = {"model": "sim/sim-model", "api_base": server.base_url, "mode": "batch"}
        price = {"prompt": 0.15, "completion": 0.6}
        settings = {**teacher, "batch": {"quiet": 0.2, "poll": 0.2}, "price": price}
        (home / "teacher.yaml").write_text(json.dumps(settings))  # JSON is valid YAML
        for in_wait in (True, False) if len(sys.argv) < 3 else (sys.argv[2] == "wait",):
            killed(server, home, rng, in_wait=in_wait)


if __name__ == "__main__":
    main()
