"""How much of its cap a compile leaves unspent where it ends there with work left.

`python -m benchmarks.spent_caps [--runs 20]`: on the simulated server, with the list prices and token counts of
realistic answers (`benchmarks.economy`). Each compile is estimated first, and then gets a cap drawn at random, until so
many have ended there. Exits with 1 where a cap is passed, or where more of it is left than a tenth and than the next
candidate costs: `A_CANDIDATE` evaluations of the uncompiled program, and its proof where none was made.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from itertools import count
from typing import Any

import refed_dspy
from benchmarks.compile_costs import JUDGES, MINI
from benchmarks.economy import NAMED, TOKENS
from benchmarks.optimization import silence
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.limits import A_CANDIDATE
from refed_dspy.records import PICO

OPTIMIZERS = "gepa", "mipro", "gepa, mipro", "bootstrap, gepa", "bootstrap, mipro, gepa"
MOST = 0.1


def measured(server: SimulatedTeacher, seed: int) -> tuple[str, float, float, float, str]:
    """What was compiled; its cap, what it used and what a candidate costs, in dollars; and what ended it."""
    rng = random.Random(f"caps {seed}")
    teacher, judge = (
        TeacherConfig.model_validate({"model": f"openai/{name}", "api_base": server.base_url, "price": price})
        for name, price in (("gpt-4o-mini", MINI), ("gpt-4.1-mini", JUDGES["gpt-4.1-mini"]))
    )
    settings: dict[str, Any] = {
        "optimizer": rng.choice(OPTIMIZERS),
        "train": rng.randint(6, 12),
        "validation": rng.randint(4, 8),
        "test": rng.randint(5, 12),
        "evaluations": rng.randint(60, 200),
        "seed": seed,
    }
    settings |= {"teacher": teacher, "judge": judge, "track": False, "progress": False}
    with tempfile.TemporaryDirectory() as folder, silence():
        first = refed_dspy.compile(None, "builtin", out=folder, estimate=True, **settings)
        cap = round(float(first.estimate["cost"]) * rng.uniform(0.2, 0.6), 3)
        made = refed_dspy.compile(None, "builtin", out=folder, max_cost=cap, **settings)
        with Ledger.read(made.folder) as ledger:
            each = (ledger.meta("first") or {})["cost"] / PICO
    next_one = A_CANDIDATE * each
    if made.proof is None or made.proof.same:  # what had been kept for a proof is of use to a proof alone
        next_one += float(made.estimate["proof_cost"])
    what = f"{settings['optimizer']} {settings['train']}+{settings['validation']}+{settings['test']}"
    return what, cap, made.cost or 0.0, next_one, made.stopped or "done"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    logging.disable(logging.WARNING)
    missed = at_cap = 0
    print(f"{'compile':32}{'cap':>8}{'used':>8}{'unspent':>9}{'candidate':>11}  ended")
    with SimulatedTeacher(latency=0.001, sigma=0.3) as server:
        server.control(tokenizer=NAMED, field_tokens={**TOKENS, "reasoning": 60, "new_instruction": 500}, items=2)
        seeds = count()
        while at_cap < runs:
            seed = next(seeds)
            what, cap, used, next_one, ended = measured(server, seed)
            left = cap - used
            print(f"{what:32}{cap:8.3f}{used:8.3f}{left / cap:9.1%}{next_one:11.3f}  {ended}", flush=True)
            at_cap += ended == "max_cost"
            missed += left < 0 or (ended == "max_cost" and left > MOST * cap and left > next_one)
    if missed:
        sys.exit(f"{missed} missed")


if __name__ == "__main__":
    main()
