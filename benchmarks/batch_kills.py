"""SIGKILL a run of 200 rows 20 times at each of six batch services, resumed each time: what is paid twice, or lost?

A third of the kills comes while a batch is being made, so that the service may have it and the ledger no name for it; a
third while one is waited for; the others at any moment. `python -m benchmarks.batch_kills [SEED [SERVICE …]]`
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.runs import REFERENCES
from benchmarks.simulated import SimulatedTeacher

KILLS, SIZE, SECONDS = 20, 200, 14.0
"""SECONDS is how long a batch takes."""
MOMENTS = ("making", "waiting", "any")
KEY = "BATCH_KILLS_KEY"
SERVICES = ("openai", "azure", "anthropic", "gemini", "self-hosted", "folder")


def teacher(service: str, server: SimulatedTeacher, folder: Path) -> dict[str, Any]:
    """The settings of a teacher behind that service."""
    where: dict[str, dict[str, Any]] = {
        "openai": {"model": "openai/sim-model", "api_base": server.base_url, "api_key_env": KEY},
        "azure": {"model": "azure/sim-model", "api_base": server.root, "api_version": "2024-10-21", "api_key_env": KEY},
        "anthropic": {"model": "anthropic/sim-model", "api_base": server.anthropic_url, "api_key_env": KEY},
        "gemini": {"model": "gemini/sim-model", "api_base": server.gemini_url, "api_key_env": KEY},
        "self-hosted": {"model": "sim/sim-model", "api_base": server.base_url},
        "folder": {"model": "vllm/sim-model", "mode": "folder"},
    }
    batch: dict[str, Any] = {"quiet": 0.2, "poll": 0.2}
    if service == "folder":
        batch["folder"] = str(folder)
    return {"mode": "batch", **where[service], "batch": batch, "price": {"prompt": 0.15, "completion": 0.6}}


def moment(run_dir: Path, named: bool) -> bool:
    """Whether a batch is under way, and the ledger has its name, or has none yet."""
    if not (run_dir / "ledger.sqlite").exists():
        return False
    with sqlite3.connect(run_dir / "ledger.sqlite") as db:
        try:
            known = "NOT NULL" if named else "NULL"
            return db.execute(f"SELECT 1 FROM batches WHERE state IS NULL AND name IS {known}").fetchone() is not None
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


def killed(command: list[str], run_dir: Path, when: str, rng: random.Random) -> bool | None:
    """Start a run and kill it. Returns whether the kill came at that moment; None where the run ended first."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if when == "any":
        time.sleep(rng.uniform(1.5, 5.0))
    else:
        while not moment(run_dir, when == "waiting") and process.poll() is None:
            time.sleep(0.001 if when == "making" else 0.02)
        time.sleep(rng.uniform(0.0, 0.02) if when == "making" else rng.uniform(0.2, 2.0))
    if process.poll() is not None:
        return None
    hit = when == "any" or moment(run_dir, when == "waiting")
    process.send_signal(signal.SIGKILL)
    process.wait()
    return hit


@contextmanager
def answered(service: str, folder: Path, server: SimulatedTeacher) -> Iterator[None]:
    """Something that answers the files in the folder, where that is the service."""
    if service != "folder":
        yield
        return
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.folder_answers", str(folder), server.base_url, str(SECONDS)]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(service: str, server: SimulatedTeacher, home: Path, rng: random.Random) -> None:
    """Kill one run `KILLS` times, then let it finish. Prints the figures."""
    run_dir, folder, settings = home / service, home / "folder", home / f"{service}.yaml"
    settings.write_text(json.dumps(teacher(service, server, folder)))  # JSON is valid YAML
    command = [sys.executable, "-m", "refed_dspy.cli", "synth", "--references", str(home / "references.jsonl")]
    command += ["--size", str(SIZE), "--per-reference", "25", "--run-dir", str(run_dir), "--teacher", str(settings)]
    server.reset()
    kills, hits = 0, 0
    with answered(service, folder, server):
        while kills < KILLS:
            hit = killed(command, run_dir, MOMENTS[kills % 3], rng)
            if hit is None:
                break
            kills, hits = kills + 1, hits + hit
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples, answers, lost = settled(run_dir)
    stats = server.stats()
    twice = stats["batch_repeated"] + stats["repeated"]
    asked = stats["batch_requests"] + stats["answered"]
    print(
        f"{service:12} {kills} kills ({hits} at the moment meant): {samples} samples of {SIZE}, {asked} requests, "
        f"{answers} answers, paid twice {twice}, charged without an answer {lost}",
        flush=True,
    )


def main() -> None:
    rng = random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    os.environ[KEY] = "batch-kills-0123456789abcdef"
    with SimulatedTeacher(latency=0, sigma=0) as server, tempfile.TemporaryDirectory() as folder:
        server.control(batch_seconds=SECONDS)
        home = Path(folder)
        (home / "references.jsonl").write_text("\n".join(json.dumps(r) for r in REFERENCES[:8]))
        for service in sys.argv[2:] or SERVICES:
            measure(service, server, home, rng)


if __name__ == "__main__":
    main()
