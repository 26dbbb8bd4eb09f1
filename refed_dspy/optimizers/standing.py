"""How a compile stands, read from its folder: finished, unfinished, or running right now."""

from __future__ import annotations

from typing import Any

from refed_dspy.engine.accounts import spent
from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.summary import usage_by_stage
from refed_dspy.engine.trials import abstentions, trials, validation_means
from refed_dspy.records import PICO, dollars


def compile_status(ledger: Ledger) -> dict[str, Any]:
    """A compile at a glance, in JSON types.

    `optimizer`; `candidates` tried, `evaluations` scored, and those that nothing could be said of (`abstained`);
    `uncompiled` and `best` mean scores on the validation set, None before there are some; `proved`: None before the
    proof; `usage` by model; `cost` in dollars; `caps`; `stopped`.
    """
    known, used, identity = trials(ledger), spent(ledger), ledger.meta("compile") or {}
    outcome = ledger.meta("outcome") or {}
    uncompiled, best = validation_means(known)
    return {
        "optimizer": identity.get("optimizer"),
        "candidates": len(known),
        "evaluations": sum(len(scores) for trial in known for scores in trial.scores.values()),
        "abstained": abstentions(ledger),
        "uncompiled": uncompiled,
        "best": best,
        "proved": (outcome.get("proof") or {}).get("proved"),
        "usage": usage_by_stage(ledger),
        "cost": None if used.unpriced else used.cost / PICO,
        "calls": used.calls,
        "caps": {name: ledger.meta(name) for name in ("max_cost", "max_calls", "max_minutes")},
        "finished": bool(outcome),
        "stopped": outcome.get("stopped") or None,
    }


def status_lines(facts: dict[str, Any]) -> list[str]:
    """The same for a person."""
    best = "" if facts["best"] is None else f", best {facts['best']:.2f} (uncompiled {facts['uncompiled']:.2f})"
    lines = [
        f"a compile by {facts['optimizer']}: {facts['candidates']} candidates, {facts['evaluations']} evaluations{best}"
    ]
    if facts["abstained"]:
        lines.append(unjudged(facts["abstained"]))
    for role, use in facts["usage"].items():
        money = "price unknown" if use["cost"] is None else dollars(use["cost"] * PICO)
        lines.append(
            f"{role}: {use['calls']} calls, {use['prompt_tokens']} tokens read, "
            f"{use['completion_tokens']} written, {money}"
        )
    lines.append("dollars: price unknown" if facts["cost"] is None else f"dollars: {dollars(facts['cost'] * PICO)}")
    if facts["stopped"]:
        lines.append(f"stopped: {why_stopped(facts['stopped'])}")
    proof = {None: "no proof yet", True: "proved better", False: "not proved better"}[facts["proved"]]
    return [*lines, proof if facts["finished"] else "not finished: the same command goes on"]


def unjudged(count: int) -> str:
    """What is told of `count` evaluations that nothing could be said of."""
    return f"not judged: {count} evaluations more, which count neither for nor against a candidate"


def why_stopped(stopped: str, remedy: str = "") -> str:
    """What ended a compile early, in words: a cap, with its `remedy`, or an endpoint that gave no answers."""
    return f"{stopped} is reached{remedy}" if stopped.startswith("max_") else f"there was {stopped}"
