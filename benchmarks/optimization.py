"""What prompt optimization gains on an unstated preference: GEPA, MIPROv2 and random edits, at equal effort.

`python -m benchmarks.optimization [--seeds 3] [--optimizers gepa,mipro,random] [--processes 2]`

Each row is one compile against the world of `preference.py`, scored on references that no optimizer saw. All metric
evaluations count against the 600, those of the uncompiled program and of both programs on the held-out references
included. Exits with 1 where a must is missed on any seed.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import dspy

from benchmarks.preference import ADDED, WISHES, Preference, World, model
from refed_dspy.ledger.candidates import load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.compile import compile  # noqa: A004
from refed_dspy.teachers.progress import CompileProgress

MOST, BELOW, ABOVE = 600, 0.4, 0.8
SETS = {"train": 12, "validation": 8, "test": 12}
AROUND = 2 * (SETS["validation"] + SETS["test"])
"""Evaluations besides the optimizer's: the uncompiled and the tuned program's on the validation set, and the proof."""
BUDGETS = {"gepa": 300, "mipro": 400, "random": MOST - AROUND}
"""Evaluations that an optimizer gets. Random edits get all that is left; DSPy's optimizers overrun, so they get less.
For at most half of its evaluations GEPA also asks the metric for reasons: counted too, the total would stay below
600."""
DOTTED = {"random": "benchmarks.optimization.RandomEdits"}


class RandomEdits:
    """Hill climbing, with the interface of a DSPy optimizer: it adds random wishes of the whole vocabulary to random
    predictors, and keeps a program that scores higher on the validation set."""

    def __init__(
        self, metric: Callable[..., Any], evaluations: int, seed: int = 0, num_threads: int = 4, max_errors: int = 10
    ) -> None:
        self.metric, self.evaluations, self.seed = metric, evaluations, seed
        self.num_threads, self.max_errors = num_threads, max_errors

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:  # noqa: ARG002
        """The best of as many programs as `evaluations` pays for."""
        score = dspy.Evaluate(
            devset=valset,
            metric=self.metric,
            num_threads=self.num_threads,
            max_errors=self.max_errors,
            display_progress=False,
        )
        rng = random.Random(self.seed)
        best, most = student, score(student).score
        for _ in range(self.evaluations // len(valset) - 1):
            tried = edited(best, rng)
            if (reached := score(tried).score) > most:
                best, most = tried, reached
        return best


def edited(program: dspy.Module, rng: random.Random) -> dspy.Module:
    """`program` with two to six more wishes: of one to twelve at once these climbed highest, and higher than programs
    drawn afresh each time."""
    program = program.deepcopy()
    for _ in range(rng.randint(2, 6)):
        predictor = rng.choice(program.predictors())
        text = f"{predictor.signature.instructions}{ADDED}{rng.choice(sorted(WISHES))}."
        predictor.signature = predictor.signature.with_instructions(text)
    return program


@dataclass(frozen=True)
class Row:
    """The result of one compile. `spread` is the standard deviation over held-out references of compiled less
    uncompiled; `noise` that over validation references of two candidates that are next to each other in rank and
    differ at all, the median of such pairs."""

    optimizer: str
    seed: int
    before: float
    after: float
    evaluations: int
    requests: int
    seconds: float
    spread: float
    noise: float | None

    def missed(self) -> list[str]:
        """The musts that it misses."""
        random_ = self.optimizer == "random"
        musts = {
            f"{self.before:.2f} before": self.before < BELOW,
            f"{self.after:.2f} after": self.after <= ABOVE if random_ else self.after > ABOVE,
            f"{self.evaluations} evaluations": self.evaluations <= MOST,
        }
        return [f"{self.optimizer}, seed {self.seed}: {figure}" for figure, held in musts.items() if not held]

    def line(self) -> str:
        """A row of the table."""
        noise = "–" if self.noise is None else f"{self.noise:.3f}"
        return (
            f"{self.optimizer:9} {self.seed:4} {self.before:7.2f} {self.after:6.2f} {self.evaluations:12} "
            f"{self.requests:9,} {self.seconds:7.0f} s {self.spread:7.3f} {noise:>6}"
        )


def measure(optimizer: str, seed: int) -> Row:
    """One compile."""
    quiet()
    evaluations = BUDGETS[optimizer]
    preference = Preference(seed)
    world, seen, started = World(preference), list[CompileProgress](), time.monotonic()
    models = {"teacher": model(world), "judge": model(world, 0.0), "reflection": model(world)}
    settings = {**SETS, **models, "seed": seed, "evaluations": evaluations, "track": False}
    with tempfile.TemporaryDirectory() as folder, silence():
        compiled = compile(
            None,
            preference.references(sum(SETS.values())),
            optimizer=DOTTED.get(optimizer, optimizer),
            options={"evaluations": evaluations} if optimizer in DOTTED else {},
            out=folder,
            on_progress=seen.append,
            **settings,
        )
        seconds = time.monotonic() - started
        spread, noise = deviations(Path(folder), compiled.manifest["candidate"], compiled.manifest["baseline"])
    if (proof := compiled.proof) is None:
        raise RuntimeError(f"{optimizer}, seed {seed}: no proof")
    return Row(
        optimizer,
        seed,
        before=proof.baseline.score.mean,
        after=proof.compiled.score.mean,
        evaluations=seen[-1].evaluations,
        requests=world.requests,
        seconds=seconds,
        spread=spread,
        noise=noise,
    )


def deviations(folder: Path, best: str, baseline: str) -> tuple[float, float | None]:
    """`Row.spread` and `Row.noise`, from a compile's ledger."""
    with Ledger.create(folder) as ledger:
        by_digest = {trial.digest: trial for trial in load_candidates(ledger)}
    compiled, plain = (by_digest[name].scores["test"] for name in (best, baseline))
    spread = statistics.pstdev(compiled[reference] - plain[reference] for reference in compiled)
    whole = [trial for trial in by_digest.values() if len(trial.scores.get("validation", {})) == SETS["validation"]]
    ranked = sorted(whole, key=lambda trial: trial.mean("validation") or 0.0, reverse=True)
    pairs = pairwise(trial.scores["validation"] for trial in ranked)
    spreads = [statistics.pstdev(a[reference] - b[reference] for reference in a) for a, b in pairs]
    positive = [deviation for deviation in spreads if deviation > 0]
    return spread, statistics.median(positive) if positive else None


def quiet() -> None:
    """Log nothing but errors, so that only the table is on the screen, and track nothing."""
    os.environ["REFED_TRACK"] = "false"
    logging.getLogger("dspy").setLevel(logging.ERROR)
    logging.getLogger("refed_dspy").setLevel(logging.ERROR)


@contextlib.contextmanager
def silence() -> Any:
    """Discard progress bars and what MIPROv2 prints."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many hidden preferences")
    parser.add_argument("--optimizers", default=",".join(BUDGETS))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    started = time.monotonic()
    todo = [(name, seed) for name in options.optimizers.split(",") for seed in range(options.seeds)]
    print("optimizer seed  before  after  evaluations  requests    time  spread  noise")
    missed = []
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for row in pool.map(measure, *zip(*todo, strict=True)):
            print(row.line(), flush=True)
            missed += row.missed()
    print(f"{time.monotonic() - started:.0f} s in all")
    if missed:
        sys.exit(f"missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
