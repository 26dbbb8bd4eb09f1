"""Compiles that pay and then end without a proof: none but those that were asked for without one.

`python -m benchmarks.provable`: 60 settings, from 4 to 40 references, with one optimizer and three, and with caps from
none to half again what is foreseen; on the simulated server with realistic prices and token counts. A compile is either
refused before its first call, or comes to a proof that could have found a gain. Exits with 1 where one did neither.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from itertools import product
from typing import Any

import refed_dspy
from benchmarks.compile_costs import JUDGES, MINI
from benchmarks.economy import NAMED, TOKENS
from benchmarks.optimization import silence
from benchmarks.preference import Preference
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError
from refed_dspy.measures.intervals import MIN_CLUSTERS
from refed_dspy.optimizers.estimate import expected
from refed_dspy.optimizers.spec import prepare
from refed_dspy.records import PICO

REFERENCES = 4, 8, 12, 15, 20, 40
CAPS = None, 0.01, 0.5, 1.0, 1.5
"""None; dollars, where below 0.1; else a share of what is foreseen."""
OPTIMIZERS = "gepa", "bootstrap, mipro, gepa"
EVALUATIONS = 40


def measured(server: SimulatedTeacher, references: int, cap: float | None, optimizer: str) -> tuple[float, str]:
    """Dollars paid, and what came of it."""
    teacher, judge = (
        TeacherConfig.model_validate({"model": f"openai/{name}", "api_base": server.base_url, "price": price})
        for name, price in (("gpt-4o-mini", MINI), ("gpt-4.1-mini", JUDGES["gpt-4.1-mini"]))
    )
    given = Preference(0).references(references)
    settings: dict[str, Any] = {"optimizer": optimizer, "evaluations": EVALUATIONS, "teacher": teacher, "judge": judge}
    try:
        if cap is not None and cap >= 0.1:
            cap *= expected(prepare(None, given, **settings)[1]).cost / PICO
        with tempfile.TemporaryDirectory() as folder, silence():
            extra: dict[str, Any] = {"out": folder, "track": False, "progress": False, "max_cost": cap}
            made = refed_dspy.compile(None, given, **settings, **extra)
            paid = made.cost or 0.0
    except ConfigError as error:
        return 0.0, f"refused: {error}"
    proof = made.proof
    if proof is None or not proof.whole or proof.gain.raw.clusters < MIN_CLUSTERS:
        return paid, f"NO PROOF: {made.why or made.stopped}"
    return paid, f"{'proved' if proof.proved else 'not proved'}{', at its cap' * bool(made.stopped)}"


def main() -> None:
    logging.disable(logging.WARNING)
    missed = 0
    with SimulatedTeacher(latency=0.001, sigma=0.3) as server:
        server.control(tokenizer=NAMED, field_tokens={**TOKENS, "reasoning": 60, "new_instruction": 500}, items=2)
        for references, cap, optimizer in product(REFERENCES, CAPS, OPTIMIZERS):
            paid, what = measured(server, references, cap, optimizer)
            missed += paid > 0 and what.startswith("NO PROOF")
            print(f"{references:4} {cap or '-'!s:>5} {optimizer:24} ${paid:.3f}  {what[:90]}", flush=True)
    print(f"{missed} paid without a proof")
    if missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
