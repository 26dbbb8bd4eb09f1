"""500 rows under all faults at once, killed half-way and resumed: how many rows come out, what is paid for twice?

`python -m benchmarks.faults [SEED]`
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
from collections import Counter
from pathlib import Path

from benchmarks.kills import committed
from benchmarks.runs import REFERENCES
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import read_run

SIZE = 500
FAULTS = {"429": 0.10, "500": 0.05, "malformed": 0.05, "cut": 0.03, "drop": 0.02, "hang": 0.01}


def paid(run_dir: Path) -> tuple[dict[str, int], int]:
    """Attempts by their end, and how many questions have more than one good answer in the ledger."""
    with sqlite3.connect(run_dir / "ledger.sqlite") as db:
        outcomes = dict(db.execute("SELECT outcome, count(*) FROM calls GROUP BY 1 ORDER BY 2 DESC"))
        more = "SELECT count(*) FROM (SELECT key FROM calls WHERE outcome='ok' GROUP BY key HAVING count(*) > 1)"
        return outcomes, int(db.execute(more).fetchone()[0])


def main() -> None:
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    with SimulatedTeacher(latency=0.2, sigma=0.5) as server, tempfile.TemporaryDirectory() as folder:
        home, run_dir = Path(folder), Path(folder) / "run"
        (home / "references.jsonl").write_text("\n".join(json.dumps(r) for r in REFERENCES))
        teacher = f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: 40\ntimeout: 3\n"
        (home / "teacher.yaml").write_text(teacher + "price: {prompt: 0.15, completion: 0.6}\n")
        command = [sys.executable, "-m", "refed_dspy.cli", "synth", "--references", str(home / "references.jsonl")]
        command += ["--size", str(SIZE), "--run-dir", str(run_dir), "--teacher", str(home / "teacher.yaml")]
        server.control(faults=FAULTS)
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while server.stats()["answered"] < SIZE * rng.uniform(0.6, 1.4) and process.poll() is None:
            time.sleep(0.05)
        in_flight = server.stats()["in_flight"]
        rows = committed(run_dir)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = committed(run_dir)
        time.sleep(1.5)
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        stats, made = server.stats(), read_run(run_dir)
        took = time.monotonic() - begun
        failed = Counter(failure.kind for failure in made.failures)
        print(f"{len(made.samples)} rows of {SIZE}, exit code {done.returncode}, {took:.0f} s in all")
        print(f"{len(rows - kept)} committed rows lost; questions that failed for good or for now: {dict(failed)}")
        print(f"requests by their end at the server: {stats['by_status']}")
        # Every request is a call in the ledger; those in flight at the kill are recorded as lost.
        recorded = sum(use["calls"] for use in made.usage.values())
        print(f"{stats['requests']} requests, {recorded} in the ledger; {in_flight} were in flight at the kill")
        outcomes, twice = paid(run_dir)
        print(f"by their end in the ledger: {outcomes}; questions with a good answer paid twice: {twice} (must be 0)")


if __name__ == "__main__":
    main()
