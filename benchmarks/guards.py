"""The guards: what they cost, and how often they drop what is good.

`python -m benchmarks.guards [FILE …]`: client CPU a call of runs of 1,000 samples with guards and without, in turn, at
the default concurrency and at 256, with responses of 250 words and references of 300. Then every row of the FILEs
(`response=COLUMN:` before a name where the response has another name), taken as if it had been made from the package's
references: each that is dropped is printed.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import refed_dspy
from benchmarks.runs import teacher_config
from benchmarks.simulated import SimulatedTeacher
from benchmarks.texts import WORDS
from refed_dspy.data.dataset import load_dataset
from refed_dspy.errors import one_line
from refed_dspy.filters.guards import InstructionGuard, ResponseGuard

SIZE, PAIRS = 1_000, 7


def references() -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        {name: " ".join(draw.choices(WORDS, k=words)) for name, words in (("instruction", 40), ("response", 300))}
        for _ in range(60)
    ]


def cpu_a_call(server: SimulatedTeacher, concurrency: int, guards: bool) -> float:
    """Milliseconds of a run's process for each of its calls."""
    server.reset()
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        made = refed_dspy.synthesize(
            None, references(), size=SIZE, teacher=teacher_config(server, concurrency), guards=guards, track=False,
            run_dir=Path(folder) / "run",
        )  # fmt: skip
        cpu = time.process_time() - cpu
    assert len(made.samples) == SIZE and not sum(each["dropped"] for each in made.status["filters"])
    return 1e3 * cpu / float(server.stats()["requests"])


def measure_cost(concurrency: int) -> None:
    tokens = {"response": 330, "improved_response": 330, "new_instructions": 50}
    with SimulatedTeacher(latency=0.1 if concurrency > 100 else 0.02, sigma=0.0) as server:
        server.control(field_tokens=tokens)
        cpu_a_call(server, concurrency, True)  # imports and caches
        pairs = [[cpu_a_call(server, concurrency, guards) for guards in (False, True)] for _ in range(PAIRS)]
    without, with_ = (median(figures) for figures in zip(*pairs, strict=True))
    ratios = sorted(guarded / bare - 1 for bare, guarded in pairs)
    print(
        f"{concurrency} at once, client CPU a call: {without:.3f} ms without guards, {with_:.3f} ms with: "
        f"{median(ratios):+.1%} ({ratios[0]:+.1%} to {ratios[-1]:+.1%} of {PAIRS} pairs; at most +5%)"
    )


def count_drops(named: str) -> None:
    column, _, file = named.rpartition(":")
    columns = {"instruction": "instruction", "response": column.removeprefix("response=")} if column else None
    rows = load_dataset(file, columns).rows
    guards = InstructionGuard(references="builtin"), ResponseGuard(references="builtin")
    dropped = 0
    for row in rows:
        for guard in guards:
            if not (decision := guard.check(row)).kept:
                dropped += 1
                print(f"  row {row.number}: {decision.reason}: {decision.detail} | {one_line(row.instruction, 200)}")
    print(f"{Path(file).name}: {dropped} of {len(rows)} rows dropped")


if __name__ == "__main__":
    for at_once in (32, 256):
        measure_cost(at_once)
    for name in sys.argv[1:]:
        count_drops(name)
