"""Whole compiles where nothing can be gained: how many are proved better all the same.

`python -m benchmarks.null_compiles [--runs 40] [--processes 2] [--optimizers gepa] [--evaluations 100]`

Each optimizer tunes against the world of `preference.py`, but its teacher does not heed its prompts: each of the
judge's wishes is in half of what it writes, by chance. "Better on the validation set" is what optimizers report: the
best candidate's gain on the set by which it was chosen. Exits with 1 where more than one run of forty is proved.
"""

from __future__ import annotations

import argparse
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

from benchmarks.preference import Preference, World
from benchmarks.races import compiled, gained

EVALUATIONS, MOST = 100, 1 / 40
BY_CHANCE = 0.5
_REWRITES = {"new_instruction", "proposed_instruction"}


class Heedless(World):
    """Its teacher follows each of the judge's wishes or not, whatever it is told."""

    def _written(self, name: str, system: str, asked: str, rng: random.Random) -> Any:
        if name not in _REWRITES:
            wishes = [*self.preference.answers, *self.preference.tasks]
            system = " ".join(f"{wish}." for wish in wishes if rng.random() < BY_CHANCE)
        return super()._written(name, system, asked, rng)


def measured(seed: int, optimizers: str, evaluations: int) -> tuple[bool, bool, float, str]:
    """Whether a run had another program to prove, whether it was proved better, what the best gained on the validation
    set, and its gain on the held-out one."""
    made = compiled(Heedless(Preference(seed)), seed, optimizers, evaluations)
    manifest = made.manifest
    assert made.proof is not None
    return manifest["candidate"] != manifest["baseline"], made.proof.proved, gained(made), str(made.proof.gain.raw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--optimizers", default="gepa")
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS)
    options = parser.parse_args()
    changed = proved = best = 0
    run = partial(measured, optimizers=options.optimizers, evaluations=options.evaluations)
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for seed, (another, better, on_validation, gain) in enumerate(pool.map(run, range(options.runs))):
            changed, proved, best = changed + another, proved + better, best + (on_validation > 0)
            what = "another program" if another else "the same"
            print(f"{seed:4}  {what:16} {on_validation:+.3f} {gain}{'  proved' * better}", flush=True)
    print(
        f"{options.runs} runs, {changed} with another program, {best} better on the validation set, {proved} proved "
        "better"
    )
    if proved > MOST * options.runs:
        sys.exit(1)


if __name__ == "__main__":
    main()
