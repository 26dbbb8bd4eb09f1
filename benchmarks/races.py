"""Three optimizers in one compile beside three compiles: calls paid for, and the winner's held-out score.

`python -m benchmarks.races [--seeds 20] [--processes 2] [--evaluations 100]`

Against the hidden preferences of `preference.py`. Of three compiles the winner is the one that gains most on the
validation set, as the race has it. Exits with 1 where the race pays for more than three quarters of the calls, or its
winners score lower on average.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from statistics import fmean

from benchmarks.optimization import quiet, silence
from benchmarks.preference import Preference, World, model
from refed_dspy.optimizers.compile import compile  # noqa: A004
from refed_dspy.optimizers.result import Compiled

SETS = {"train": 12, "validation": 8, "test": 16}
RACED = "bootstrap", "mipro", "gepa"
MOST = 0.75
ROUNDING = 0.005
"""So much lower a mean score may be and is still the same."""


def compiled(world: World, seed: int, optimizer: str, evaluations: int) -> Compiled:
    """A compile against `world`, with its proof."""
    quiet()
    models = {"teacher": model(world), "judge": model(world, 0.0), "reflection": model(world)}
    with tempfile.TemporaryDirectory() as folder, silence():
        made = compile(
            None,
            world.preference.references(sum(SETS.values())),
            optimizer=optimizer,
            out=folder,
            **{**SETS, **models, "seed": seed, "evaluations": evaluations, "track": False},
        )
    if made.proof is None:
        raise RuntimeError(f"seed {seed}: no proof")
    return made


def gained(made: Compiled) -> float:
    """What the best candidate gained on the validation set."""
    return max((float(each["gain"]) for each in made.manifest["race"]), default=0.0)


def scored(seed: int, optimizer: str, evaluations: int) -> tuple[int, float, float]:
    """The calls that a compile paid for, what it gained on the validation set, and its score on the test set."""
    world = World(Preference(seed))
    made = compiled(world, seed, optimizer, evaluations)
    assert made.proof is not None
    return world.requests, gained(made), made.proof.compiled.score.mean


def measured(seed: int, evaluations: int) -> tuple[int, float, int, float]:
    """Of three compiles the calls and the winner's score; the same of the race."""
    alone = [scored(seed, name, evaluations) for name in RACED]
    calls, _, score = scored(seed, ",".join(RACED), evaluations)
    return sum(each[0] for each in alone), max(alone, key=lambda each: each[1])[2], calls, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--evaluations", type=int, default=100)
    options = parser.parse_args()
    found = []
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        run = partial(measured, evaluations=options.evaluations)
        for seed, each in enumerate(pool.map(run, range(options.seeds))):
            found.append(each)
            print(
                f"{seed:4}  alone {each[0]:6,} calls {each[1]:.3f}  raced {each[2]:6,} calls {each[3]:.3f}", flush=True
            )
    alone, raced = (sum(each[at] for each in found) for at in (0, 2))
    before, after = (fmean(each[at] for each in found) for at in (1, 3))
    print(f"calls {alone:,} and {raced:,}: {raced / alone:.2f} of them; held-out score {before:.3f} and {after:.3f}")
    if raced > MOST * alone or after < before - ROUNDING:
        sys.exit(1)


if __name__ == "__main__":
    main()
