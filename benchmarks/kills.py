"""SIGKILL one run at 20 random moments, resumed each time: rows lost, calls paid for again.

`python -m benchmarks.kills [SEED]`
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
from contextlib import closing
from pathlib import Path

from benchmarks.runs import REFERENCES
from benchmarks.simulated import SimulatedTeacher

KILLS, SIZE, CONCURRENCY = 20, 900, 40


def committed(run_dir: Path) -> set[tuple[str, str]]:
    """Every committed row that cost something or came from one that did: answers, instructions, samples."""
    if not (run_dir / "ledger.sqlite").exists():
        return set()
    # Closed at once: a connection left open shares its view of the file with the next one in this process.
    with closing(sqlite3.connect(run_dir / "ledger.sqlite")) as db:
        rows = {("answer", key) for (key,) in db.execute("SELECT key FROM answers")}
        rows |= {("instruction", f"{i} {text}") for i, text in db.execute("SELECT id, text FROM instructions")}
        rows |= {("sample", str(i)) for (i,) in db.execute("SELECT instruction FROM samples")}
    return rows


def answers(rows: set[tuple[str, str]]) -> int:
    return sum(kind == "answer" for kind, _ in rows)


def main() -> None:
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    lost = 0
    in_flight: list[int] = []
    with SimulatedTeacher(latency=0.2, sigma=0.5) as server, tempfile.TemporaryDirectory() as folder:
        home, run_dir = Path(folder), Path(folder) / "run"
        (home / "references.jsonl").write_text("\n".join(json.dumps(r) for r in REFERENCES))
        teacher = f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: {CONCURRENCY}\n"
        (home / "teacher.yaml").write_text(teacher)
        command = [sys.executable, "-m", "refed_dspy.cli", "synth", "--references", str(home / "references.jsonl")]
        command += ["--size", str(SIZE), "--run-dir", str(run_dir), "--teacher", str(home / "teacher.yaml")]
        before = 0
        for _ in range(KILLS):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while server.stats()["requests"] == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.05, 0.5))
            rows = committed(run_dir)
            process.send_signal(signal.SIGKILL)
            process.wait()
            kept = committed(run_dir)
            lost += len(rows - kept)
            time.sleep(1.5)  # the server notices and answers none of them later
            before = server.stats()["requests"]
            in_flight.append(before - answers(kept) - sum(in_flight))  # sent, and not committed
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = committed(run_dir)
        stats = server.stats()
        paid_again = stats["requests"] - answers(rows)
        print(f"{KILLS} kills: {lost} committed rows lost (must be 0)")
        print(f"{paid_again} calls sent again, {sum(in_flight)} were in flight at the kills (must be <=)")
        print(f"{stats['repeated']} of them had been answered already; in flight at each kill: {in_flight}")
        print(f"{sum(kind == 'sample' for kind, _ in rows)} samples of {SIZE}")


if __name__ == "__main__":
    main()
