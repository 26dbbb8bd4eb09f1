"""200 runs with random caps and faults, 500 calls at once: dollars over the cap, by ledger and by the server's bill.

`python -m benchmarks.caps [RUNS] [SEED]`. One run in five is killed (SIGKILL) half-way and resumed under its cap.
"""

from __future__ import annotations

import logging
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import refed_dspy
from benchmarks.runs import REFERENCES
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.records import PICO

CONCURRENCY = 500
PRICE = {"prompt": 0.15, "completion": 0.6}
FAULTS = ("429", "500", "malformed", "cut", "drop", "hang", "nousage")


def faults(rng: random.Random) -> dict[str, float]:
    return {name: round(rng.uniform(0, 0.06), 3) for name in FAULTS if rng.random() < 0.6}


def run(base_url: str, folder: Path, max_cost: float, size: int) -> None:
    """Start a run once. A stage that fails too often ends it early, which does not matter here."""
    teacher: dict[str, Any] = {"model": "sim/sim-model", "api_base": base_url, "price": PRICE}
    teacher |= {"concurrency": CONCURRENCY, "timeout": 0.5, "retries": 2, "max_tokens": 1024}
    try:
        refed_dspy.synthesize(
            None,
            REFERENCES,
            size=size,
            teacher=refed_dspy.TeacherConfig.model_validate(teacher),
            run_dir=folder,
            max_cost=max_cost,
            max_failure_share=1.0,
        )
    except RunStopped as error:
        print(f"  (ended early: {error})", file=sys.stderr)


def killed(base_url: str, folder: Path, max_cost: float, size: int, rng: random.Random) -> None:
    """`run` in its own process, killed after a moment."""
    command = [sys.executable, "-m", "benchmarks.caps", "--child", base_url, str(folder), str(max_cost), str(size)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while not (folder / "ledger.sqlite").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(rng.uniform(0.05, 0.4))
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.2)


def bill(stats: Mapping[str, int]) -> int:
    """Picodollars the server would charge for all its answers, whether or not the client received them."""
    prompt, completion = stats["billed_prompt_tokens"], stats["billed_completion_tokens"]
    return round(prompt * PRICE["prompt"] * 1e6) + round(completion * PRICE["completion"] * 1e6)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        run(sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
        return
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    over_ledger, over_bill, unseen, capped = 0.0, 0.0, 0, 0
    used_shares = []
    logging.getLogger("refed_dspy").setLevel(logging.ERROR)
    with SimulatedTeacher(latency=0.05, sigma=0.8) as server, tempfile.TemporaryDirectory() as home:
        for number in range(runs):
            folder, size = Path(home) / "run", rng.randint(20, 120)
            max_cost = 10 ** rng.uniform(-2.9, -1.0)
            shutil.rmtree(folder, ignore_errors=True)
            server.control(faults=faults(rng), seed=number)
            server.reset()
            if number % 5 == 0:
                killed(server.base_url, folder, max_cost, size, rng)
            run(server.base_url, folder, max_cost, size)
            with Ledger.read(folder) as ledger:
                recorded, kept = spent(ledger).picodollars, ledger.kept()
            billed = bill(server.stats())
            capped += kept < size
            over_ledger = max(over_ledger, recorded / PICO - max_cost)
            over_bill = max(over_bill, billed / PICO - max_cost)
            unseen = max(unseen, billed - recorded)
            used_shares.append(recorded / PICO / max_cost if kept < size else 1.0)
    print(f"{runs} runs, {capped} ended at their cap, with {sum(used_shares) / runs:.0%} of it used on average")
    print(f"dollars over the cap, the largest of all: {over_ledger:g} by the ledger, {over_bill:g} billed (must be 0)")
    print(f"billed beyond what the ledger says, the largest of all: ${unseen / PICO:g} (must be 0)")


if __name__ == "__main__":
    main()
