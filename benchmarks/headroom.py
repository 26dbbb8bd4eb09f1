"""What `refed compile plan` says of forty simulated worlds, beside what there is to gain in each.

`python -m benchmarks.headroom [--family 0] [--processes 2]`

The worlds and their true gains are those of `headroom_worlds.py`, which was written before the method. Family 0 is
counted; the method was chosen on families 1 and 2. Exits with 1 where more than one world without a gain is said to
have one, or more than three with 0.15 or more to have none.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks.headroom_worlds import GAINS, Place, Somewhere, places
from benchmarks.optimization import quiet, silence
from benchmarks.preference import model
from refed_dspy.measures.intervals import correlations
from refed_dspy.optimizers.planning import plan_compile

REFERENCES = 15
FALSE, MISSED = 1, 3
"""How many worlds of each kind may be called wrongly."""


def measured(place: Place) -> tuple[float, float, str, float]:
    """What the test says of one world: at least how much there is to gain, the gain of the best program, and its name;
    and its seconds."""
    quiet()
    world, started = Somewhere(place), time.monotonic()
    models = {"teacher": model(world), "judge": model(world, 0.0), "reflection": model(world)}
    with tempfile.TemporaryDirectory() as folder, silence():
        plan = plan_compile(place.program(), place.references(REFERENCES), out=folder, track=False, **models)
    if plan.headroom is None:
        raise RuntimeError(f"{place.name}: nothing measured")
    best = plan.headroom.variants[0]
    return plan.headroom.at_least, best.gain, best.label, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    listed, true = places(options.family), json.loads(GAINS.read_text())
    said, found, seconds = list[float](), list[float](), 0.0
    print(f"{'world':52}  true  at least  best program")
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for place, (least, gain, label, took) in zip(listed, pool.map(measured, listed), strict=True):
            said, found, seconds = [*said, least], [*found, gain], max(seconds, took)
            wrong = "  WRONG" if (least > 0) != place.gains else ""
            head = f"{place.number:3} {place.name:48}  {true[str(place.seed)]:.2f}"
            print(f"{head}  {f'{least:.2f}' if least else 'nothing':>8}  {label} {gain:+.2f}{wrong}", flush=True)
    gains = [true[str(place.seed)] for place in listed]
    false = sum(least > 0 for place, least in zip(listed, said, strict=True) if not place.gains)
    missed = sum(least == 0 for place, least in zip(listed, said, strict=True) if place.gains)
    over = sum(least > gain for least, gain in zip(said, gains, strict=True))
    print(f"without a gain: {13 - false} of 13 called nothing; with one: {missed} of 27 called nothing")
    print(f"'at least' above the true gain: {over}; longest: {seconds:.0f} s")
    for what, numbers in (("'at least'", said), ("gain of the best program", found)):
        both = correlations(numbers, gains)
        print(f"{what} and true gain: r {both.pearson:.2f}, rho {both.spearman:.2f}")
    if false > FALSE or missed > MISSED:
        sys.exit(1)


if __name__ == "__main__":
    main()
