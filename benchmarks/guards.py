"""The guards: what they cost a run, and how often they drop what is good.

`python -m benchmarks.guards [DATA]`: the public sets in the folder DATA (see `benchmarks.filters`), each pair taken as
if it had been made from the package's references; each that is dropped is printed. Then, how many of their instructions
are dropped whose input was taken away. Last, client CPU a call of runs of 1,000 samples with guards and without, in
turn, at the default concurrency and at 256, with responses of 250 words and references of 300; and of such runs, the
CPU of the guards' looks at texts alone, which varies less.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import refed_dspy
from benchmarks.filters import DATA, Pair, pandalm, public_pairs
from benchmarks.runs import teacher_config
from benchmarks.simulated import SimulatedTeacher
from benchmarks.texts import WORDS
from refed_dspy.errors import one_line
from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.filters.guards import InstructionGuard, ResponseGuard, missing_text
from refed_dspy.records import DataRow

SIZE, PAIRS = 1_000, 7
TOKENS = {"response": 330, "improved_response": 330, "new_instructions": 50}


def references() -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        {name: " ".join(draw.choices(WORDS, k=words)) for name, words in (("instruction", 40), ("response", 300))}
        for _ in range(60)
    ]


class Timed(TextFilter):
    """A guard whose looks at texts are timed."""

    def __init__(self, guard: TextFilter) -> None:
        self.name, self.of_instruction, self._guard, self.seconds = (
            f"timed {guard.name}",
            guard.of_instruction,
            guard,
            0.0,
        )

    def check(self, row: DataRow) -> Decision:
        began = time.thread_time()
        decision = self._guard.check(row)
        self.seconds += time.thread_time() - began
        return decision


def cpu_a_call(server: SimulatedTeacher, concurrency: int, guards: bool, filters: Sequence[TextFilter] = ()) -> float:
    """Milliseconds of this process for each call of a run."""
    server.reset()
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        made = refed_dspy.synthesize(
            None, references(), size=SIZE, teacher=teacher_config(server, concurrency), guards=guards, track=False,
            filters=filters, run_dir=Path(folder) / "run",
        )  # fmt: skip
        cpu = time.process_time() - cpu
    assert len(made.samples) == SIZE and not sum(each["dropped"] for each in made.status["filters"])
    return 1e3 * cpu / float(server.stats()["requests"])


def looks_a_call(server: SimulatedTeacher, concurrency: int) -> float:
    """Milliseconds that the guards' looks at texts take, for each call of a run."""
    timed = Timed(InstructionGuard()), Timed(ResponseGuard())
    cpu_a_call(server, concurrency, False, timed)
    return 1e3 * sum(guard.seconds for guard in timed) / float(server.stats()["requests"])


def measure_cost(concurrency: int) -> None:
    with SimulatedTeacher(latency=0.1 if concurrency > 100 else 0.02, sigma=0.0) as server:
        server.control(field_tokens=TOKENS)
        cpu_a_call(server, concurrency, True)  # imports and caches
        pairs = [[cpu_a_call(server, concurrency, guards) for guards in (False, True)] for _ in range(PAIRS)]
        alone = median(looks_a_call(server, concurrency) for _ in range(3))
    without, with_ = (median(figures) for figures in zip(*pairs, strict=True))
    more = sorted(guarded / bare - 1 for bare, guarded in pairs)
    print(
        f"{concurrency} at once, client CPU a call: {without:.3f} ms without guards, {with_:.3f} ms with; "
        f"{median(more):+.1%} ({more[0]:+.1%} to {more[-1]:+.1%} of {PAIRS} pairs; at most +5%)"
    )
    print(f"  their looks at texts alone: {alone:.3f} ms a call, {alone / without:.1%}")


def report_drops(name: str, pairs: Sequence[Pair]) -> None:
    guards = InstructionGuard(references="builtin"), ResponseGuard(references="builtin")
    dropped = 0
    for instruction, response in pairs:
        decisions = [guard.check(DataRow(0, instruction, response)) for guard in guards]
        if drop := next((decision for decision in decisions if not decision.kept), None):
            dropped += 1
            print(f"  {drop.reason}: {drop.detail} | {one_line(instruction, 200)}")
    print(f"{name}: {dropped} of {len(pairs)} pairs dropped ({dropped / len(pairs):.1%}; at most 1%)")


def report_missing(data: Path) -> None:
    """Of how many instructions it is seen that their input is not there."""
    seeds = [json.loads(line) for line in (data / "self_instruct_seed_tasks.jsonl").read_text("utf-8").splitlines()]
    asked = {row["instruction"] for row in seeds if row["instances"][0]["input"].strip()}
    asked |= {row["instruction"] for row in pandalm(data) if row["input"].strip()}
    print(f"without their inputs: {sum(map(bool, map(missing_text, asked)))} of {len(asked)} instructions dropped")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    for name, pairs in public_pairs(folder).items():
        report_drops(name, pairs)
    report_missing(folder)
    for at_once in (32, 256):
        measure_cost(at_once)
