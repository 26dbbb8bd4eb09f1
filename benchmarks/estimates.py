"""The estimate against the true total: 20 simulated jobs.

`python -m benchmarks.estimates [JOBS] [SEED]`: jobs differ in size, in number and length of references, in duplicates
and in faults.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import refed_dspy
from benchmarks.simulated import SimulatedTeacher

PRICE = {"prompt": 0.15, "completion": 0.6, "cached": 0.075}


def references(rng: random.Random) -> list[dict[str, str]]:
    """References of varied length; as in real data, a few are very long."""
    spread = rng.uniform(0.3, 1.1)
    return [
        {
            "instruction": f"Explain topic {i} to a student. " + "In detail. " * int(rng.lognormvariate(0.5, spread)),
            "response": f"Topic {i} is about many things. " * max(1, int(rng.lognormvariate(2.5, spread))),
        }
        for i in range(rng.randint(10, 120))
    ]


def job(rng: random.Random, server: SimulatedTeacher) -> tuple[list[dict[str, str]], dict[str, Any]]:
    server.control(
        items=rng.choice([4, 8, 10, 14]),
        duplicates=rng.choice([0, 0, 0.1, 0.3]),
        response_words=rng.choice([10, 40, 150]),
        faults={name: rng.uniform(0, 0.05) for name in ("429", "500", "malformed", "cut")},
        seed=rng.randint(0, 10**6),
    )
    server.reset()
    teacher = {"model": "sim/sim-model", "api_base": server.base_url, "price": PRICE, "concurrency": 64}
    return references(rng), {
        "size": rng.choice([150, 300, 600, 1_200]),
        "per_reference": rng.choice([None, None, 4, 10]),
        "teacher": refed_dspy.TeacherConfig.model_validate(teacher),
        "seed": rng.randint(0, 1_000),
    }


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    near = covered = 0
    with SimulatedTeacher(latency=0.02, sigma=0.5) as server, tempfile.TemporaryDirectory() as home:
        for number in range(jobs):
            folder = Path(home) / "run"
            shutil.rmtree(folder, ignore_errors=True)
            sources, settings = job(rng, server)
            estimated = refed_dspy.estimate(None, sources, run_dir=folder, **settings)
            made = refed_dspy.synthesize(None, sources, run_dir=folder, **settings)
            cost = made.status["cost"]
            assert estimated.cost is not None and estimated.low is not None and estimated.high is not None
            off = estimated.cost / cost - 1
            near += abs(off) <= 0.15
            covered += estimated.low <= cost <= estimated.high
            print(
                f"job {number}: {len(made.samples)} of {settings['size']} rows, ${cost:.4f}, "
                f"estimated ${estimated.cost:.4f} "
                f"(${estimated.low:.4f} to ${estimated.high:.4f}), {off:+.1%}; "
                f"{estimated.spent / cost:.0%} spent on the pilot"
            )
    print(f"within 15%: {near} of {jobs} (must be 18 of 20); the interval held the truth in {covered}")


if __name__ == "__main__":
    main()
