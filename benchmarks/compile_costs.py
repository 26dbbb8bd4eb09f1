"""What compiles cost against what is foreseen before the first call: README's, the examples' and the pages'.

`python -m benchmarks.compile_costs`: on the simulated server, with the list prices and token counts of realistic
answers (`benchmarks.economy`). Exits with 1 where one does not come to a proof under its cap, or takes less than a
third of what was foreseen or more than is named as enough.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from typing import Any

import refed_dspy
from benchmarks.economy import NAMED, TOKENS
from benchmarks.optimization import silence
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.optimizers.estimate import LEEWAY, expected
from refed_dspy.optimizers.spec import prepare
from refed_dspy.records import PICO

MINI = {"prompt": 0.15, "completion": 0.6, "cached": 0.075}
JUDGES = {
    "gpt-4.1": {"prompt": 2.0, "completion": 8.0, "cached": 0.5},
    "gpt-4.1-mini": {"prompt": 0.4, "completion": 1.6, "cached": 0.1},
}
EXAMPLE = {"train": 10, "validation": 8, "test": 14, "evaluations": 150}
COMPILES: dict[str, tuple[str, dict[str, Any]]] = {
    "README, gepa": ("gpt-4.1-mini", {"optimizer": "gepa", "max_cost": 3.0}),
    "examples/compile.yaml": ("gpt-4.1", {"optimizer": "gepa", "max_cost": 6.0, **EXAMPLE}),
    "three_optimizers": (
        "gpt-4.1-mini",
        {"optimizer": "bootstrap, mipro, gepa", "max_cost": 6.0, "evaluations": 100},
    ),
    "simba": ("gpt-4.1", {"optimizer": "simba", "max_cost": 5.1}),
    "mipro": ("gpt-4.1", {"optimizer": "mipro", "max_cost": 12.0}),
}


def measured(server: SimulatedTeacher, judge: str, settings: dict[str, Any]) -> tuple[float, float, float, str]:
    """Dollars foreseen before the first call, by its first evaluations, and used; and what is wrong."""
    teacher, its_judge = (
        TeacherConfig.model_validate({"model": f"openai/{name}", "api_base": server.base_url, "price": price})
        for name, price in (("gpt-4o-mini", MINI), (judge, JUDGES[judge]))
    )
    models: dict[str, Any] = {"teacher": teacher, "judge": its_judge}
    foreseen = expected(prepare(None, "builtin", **models, **settings)[1]).cost / PICO
    with tempfile.TemporaryDirectory() as folder, silence():
        made = refed_dspy.compile(None, "builtin", out=folder, track=False, progress=False, **models, **settings)
    used = made.cost or 0.0
    wrong = made.stopped or ("" if made.proof is not None else "no proof")
    if not foreseen / 3 <= used <= LEEWAY * foreseen:
        wrong = wrong or "not as foreseen"
    return foreseen, float(made.estimate["cost"]), used, wrong


def main() -> None:
    logging.disable(logging.WARNING)
    missed = []
    print(f"{'compile':30}{'cap':>8}{'foreseen':>10}{'by first':>10}{'used':>8}")
    with SimulatedTeacher(latency=0.01, sigma=0.3) as server:
        server.control(tokenizer=NAMED, field_tokens={**TOKENS, "reasoning": 60, "new_instruction": 500}, items=2)
        for name, (judge, settings) in COMPILES.items():
            foreseen, first, used, wrong = measured(server, judge, settings)
            print(f"{name:30}{settings['max_cost']:8.2f}{foreseen:10.2f}{first:10.2f}{used:8.2f}  {wrong}", flush=True)
            missed += [name] * bool(wrong)
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
