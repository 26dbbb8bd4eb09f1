"""What people read of a run, of other paid work and of batches, as lines of text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from refed_dspy.errors import one_line


def money(amount: float | None, unpriced: int = 0) -> str:
    """`amount` dollars, and how many calls are not in it since their price is unknown."""
    from refed_dspy.records import PICO, dollars

    if amount is None or (unpriced and not amount):
        return "price unknown"
    return dollars(amount * PICO) + (f" and {unpriced} calls at an unknown price" if unpriced else "")


def usage_line(stage: str, usage: Mapping[str, Any]) -> str:
    """What one stage's calls took (`ledger.summary.usage_by_stage`)."""
    unknown = f", {usage['unknown']} of unknown usage" if usage["unknown"] else ""
    reasoning = f" ({usage['reasoning_tokens']} reasoning)" if usage["reasoning_tokens"] else ""
    return (
        f"{stage}: {usage['calls']} calls, {usage['prompt_tokens']} tokens read ({usage['cached_tokens']} cached), "
        f"{usage['completion_tokens']} written{reasoning}{unknown}, {money(usage['cost'], usage['unpriced'])}"
    )


def tokens_lines(tokens: Mapping[str, Any] | None) -> list[str]:
    """What a kept sample took (`ledger.summary.tokens_a_sample`): a line for all stages, and one for each."""
    if tokens is None:
        return []
    lines = [f"a kept sample: {_tokens(tokens['all'])}"]
    return lines + [f"  {stage}: {_tokens(share)}" for stage, share in tokens["stages"].items()]


def _tokens(tokens: Mapping[str, float]) -> str:
    phrases = [f"{tokens['prompt']:,.0f} tokens read"]
    if tokens["cached"]:
        phrases.append(f"{tokens['cached']:,.0f} of them cached, {tokens['uncached']:,.0f} not")
    return ", ".join([*phrases, f"{tokens['completion']:,.0f} written"])


def run_lines(status: Mapping[str, Any]) -> list[str]:
    """How a run or a comparison stands (`runs.result.full_status`)."""
    instructions = status["instructions"]
    made = "instructions compared" if status["work"] == "comparison" else "samples"
    lines = [
        f"{status['kept']} of {status['size']} {made}, {status['opened']} of {status['references']} references opened",
        f"instructions: {instructions['new']} new, {instructions['duplicates']} duplicate, "
        f"{instructions['surplus']} beyond the number asked for",
    ]
    if status["left_out"]:
        lines.append("references left out: " + ", ".join(f"{n} {why}" for why, n in status["left_out"].items()))
    lines += [_filter_line(counts) for counts in status["filters"]]
    lines += [usage_line(stage, usage) for stage, usage in status["usage"].items()]
    if len(status["models"]) > 1:
        lines += [usage_line(f"{usage['model']} at {usage['endpoint']}", usage) for usage in status["models"]]
    lines += tokens_lines(status["tokens_a_sample"])
    lines += _cost_lines(status)
    if status["stopped"]:
        lines.append(f"stopped: {status['stopped']}")
    return lines + _failure_lines(status)


def _filter_line(counts: Mapping[str, Any]) -> str:
    of_kept, why = (_counted(counts[name]) for name in ("remarks", "reasons"))
    return f"filter {counts['filter']}: {counts['kept']} kept{of_kept}, {counts['dropped']} dropped{why}"


def _counted(reasons: Mapping[str, int]) -> str:
    """Each reason with its count, in brackets; nothing where there is none."""
    listed = ", ".join(f"{count} {one_line(reason, 80)}" for reason, count in reasons.items())
    return f" ({listed})" if listed else ""


def _failure_lines(status: Mapping[str, Any]) -> list[str]:
    return [f"failed: {group['count']} {group['kind']} in {group['stage']}" for group in status["failures"]]


def _cost_lines(status: Mapping[str, Any]) -> list[str]:
    """What the run has cost, for each kept sample, and what it is projected to."""
    each, usage = status["cost_per_sample"], status["usage"].values()
    line = f"dollars: {money(status['cost'], status['unpriced'])}"
    if each:
        line += f", {money(each)} a kept sample"
    if in_flight := sum(stage["in_flight"] for stage in usage):
        cost = money(sum(stage["in_flight_cost"] for stage in usage))
        line += f"; {cost} of it set aside for {in_flight} calls in flight"
    if reserved := sum(stage["reserved"] for stage in usage):
        line += f"; {money(reserved)} of it set aside for calls that never reported their tokens"
    if status["price_source"]:
        line += f" (prices of {status['price_source']})"
    lines = [line]
    if (projected := status["projected"]) is not None:
        worth = "dollars unknown"
        if projected["cost"] is not None:
            worth = f"{money(projected['cost'])} ({money(projected['low'])} to {money(projected['high'])})"
        lines.append(f"projected for {projected['size']} samples: {worth}, {projected['calls']} calls")
    return lines


def work_lines(status: Mapping[str, Any]) -> list[str]:
    """How work over a data set stands (`ledger.summary.work_status`)."""
    asked, rows = status["asked"], status["rows"]
    of = f" of {rows}" if rows is not None and rows >= asked else ""
    lines = [f"{status['work']}: {asked}{of} rows asked about"]
    lines += [usage_line(stage, usage) for stage, usage in status["usage"].items()]
    lines.append(f"dollars: {money(status['cost'], status['unpriced'])}")
    return lines + _failure_lines(status)


def simulated_lines(status: Mapping[str, Any]) -> list[str]:
    """That the simulated teacher answered, if it did."""
    return [status["simulated"]] if status["simulated"] else []


def batch_line(batch: Mapping[str, Any]) -> str:
    """One batch (`ledger.batches.all_batches`)."""
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(batch["created"]))
    state = batch["state"] or ("under way" if batch["name"] else "not known to be there")
    waiting = f", {batch['calls']} calls not settled" if batch["calls"] else ""
    name = one_line(batch["name"] or f"(refed_batch {batch['nonce']})")
    return f"{name}: {batch['requests']} requests of {begun} to {batch['model']}, {state}{waiting}"


def given_up_line(batches: Sequence[Mapping[str, Any]]) -> str:
    """What became of the calls in `batches` that nobody asks about any more."""
    arrived = sum(batch["arrived"] for batch in batches)
    lost = sum(batch["calls"] for batch in batches) - arrived
    kept = f"; {arrived} answers that have come are kept for a run in batches" if arrived else ""
    return f"{len(batches)} given up: {lost} calls stay charged in full{kept}"
