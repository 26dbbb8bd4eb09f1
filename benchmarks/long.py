"""One long run, killed three times, then exported and reported: calls a second from its beginning to its end.

`python -m benchmarks.long [SAMPLES]` (100,000, about five minutes)
"""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.connection import FILE

KILLS, CONCURRENCY = 3, 256
REFED = [sys.executable, "-m", "refed_dspy.cli"]
_TEXT = "Topic {0} is about many things, and this sentence says so. " * 8


def kept(run: Path) -> int:
    if not (run / FILE).exists():
        return 0
    with sqlite3.connect(run / FILE) as db:
        return int(db.execute("SELECT coalesce(max(seq), 0) FROM samples").fetchone()[0])


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    rng, rates = random.Random(0), list[tuple[int, float]]()
    with SimulatedTeacher(latency=0.1, sigma=0.5) as server, tempfile.TemporaryDirectory() as folder:
        home, run = Path(folder), Path(folder) / "run"
        pairs = ({"instruction": f"Explain topic {i}.", "response": _TEXT.format(i)} for i in range(size // 16))
        (home / "references.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        settings = f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: {CONCURRENCY}\n"
        (home / "teacher.yaml").write_text(settings)
        command = [*REFED, "synth", "--references", str(home / "references.jsonl"), "--size", str(size)]
        command += ["--run-dir", str(run), "--teacher", str(home / "teacher.yaml")]
        moments = sorted(rng.uniform(0.1, 0.9) * size for _ in range(KILLS))
        for until in [*moments, size + 1]:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and kept(run) < until:
                before, begun = server.stats()["requests"], time.perf_counter()
                time.sleep(5)
                rates.append((kept(run), (server.stats()["requests"] - before) / (time.perf_counter() - begun)))
            process.kill()
            process.wait()
        with sqlite3.connect(run / FILE) as db:
            answers, twice = db.execute(
                "SELECT count(*), (SELECT count(*) - count(DISTINCT digest) FROM instructions) FROM answers"
            ).fetchone()
        sent = server.stats()["requests"]
        for name, out in (("export", "rows.jsonl"), ("report", "page.html")):
            words = [name, str(run), "--out", str(home / out)]
            subprocess.run([*REFED, *words], check=True, stdout=subprocess.DEVNULL)
        with (home / "rows.jsonl").open() as file:
            lines = sum(1 for _ in file)
        size_of_page = (home / "page.html").stat().st_size / 1e6
    for at, rate in rates:
        print(f"{at:>9,} samples: {rate:,.0f} calls/s")
    print(f"{lines:,} of {size:,} rows exported, {twice} instructions twice; page of {size_of_page:.1f} MB")
    print(f"{sent - answers} requests more than answers, after {KILLS} kills with {CONCURRENCY} calls in flight")


if __name__ == "__main__":
    main()
