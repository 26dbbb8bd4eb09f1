"""What a ledger says of its run: counts for people and for scripts."""

from __future__ import annotations

from typing import Any

from refed_dspy.engine.ledger import Ledger
from refed_dspy.records import PICO

_STAGES = """
SELECT stage, count(*), sum(outcome = 'ok'), total(prompt_tokens), total(cached_tokens), total(completion_tokens),
       sum(prompt_tokens IS NULL AND outcome NOT LIKE 'http 4%' AND outcome NOT LIKE 'http 5%' AND outcome != 'sent'),
       total(cost), total(CASE WHEN prompt_tokens IS NULL AND outcome != 'sent' THEN cost END),
       total(CASE WHEN outcome = 'sent' THEN cost END), sum(outcome = 'sent'), sum(cost IS NULL)
FROM calls GROUP BY stage ORDER BY min(id)
"""
_WORDS = (
    *("calls", "answered", "prompt_tokens", "cached_tokens", "completion_tokens", "unknown"),
    *("cost", "reserved", "in_flight_cost", "in_flight", "unpriced"),
)


def usage_by_stage(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Stage → calls and what they took.

    `answered` calls; tokens; `unknown`: calls that may have been billed but reported no tokens; `cost` in dollars, of
    it `reserved` for those at their worst case; `in_flight` calls and what is set aside for them (`in_flight_cost`, in
    `cost`); `unpriced`: calls whose price is not known, and not in `cost`, which is None where there are no others.
    """
    usage = {}
    for stage, *numbers in ledger.db.execute(_STAGES):
        use: dict[str, Any] = dict(zip(_WORDS, map(int, numbers), strict=True))
        for name in ("cost", "reserved", "in_flight_cost"):
            use[name] /= PICO
        if use["unpriced"] and not use["cost"]:
            use["cost"] = None
        usage[stage] = use
    return usage


def run_status(ledger: Ledger) -> dict[str, Any]:
    """The run at a glance, in JSON types.

    `size` asked for and `kept`; `references` in all, `opened` and `left_out` by reason; `instructions` that are
    `duplicates` or `surplus` (beyond the number asked for); `failures` by stage and kind; `usage` by stage; `cost` in
    dollars, `unpriced` calls not counted in it; `stopped`: the cap it ended at.
    """
    db = ledger.db
    usage = usage_by_stage(ledger)
    unpriced = sum(use["unpriced"] for use in usage.values())
    known = [use["cost"] for use in usage.values() if use["cost"] is not None]
    cost = sum(known) if known or not usage else None
    duplicates, surplus, new = db.execute(
        "SELECT coalesce(sum(duplicates), 0), coalesce(sum(surplus), 0), coalesce(sum(kept), 0) FROM proposals"
    ).fetchone()
    opened = db.execute(
        "SELECT count(DISTINCT item) FROM answers WHERE stage IN ('instruction_feedback', 'response_feedback')"
    ).fetchone()[0]
    failures = db.execute("SELECT stage, kind, count(*) FROM failures GROUP BY 1, 2 ORDER BY 3 DESC").fetchall()
    size = int(ledger.meta("size") or 0)
    kept = ledger.kept()
    return {
        "size": size,
        "kept": kept,
        "complete": kept >= size,
        "references": db.execute("SELECT count(*) FROM refs").fetchone()[0],
        "opened": opened,
        "left_out": ledger.meta("left_out") or {},
        "instructions": {"new": new, "duplicates": duplicates, "surplus": surplus},
        "failures": [{"stage": stage, "kind": kind, "count": count} for stage, kind, count in failures],
        "usage": usage,
        "cost": cost,
        "cost_per_sample": cost / kept if kept and cost is not None and not unpriced else None,
        "unpriced": unpriced,
        "price_source": ledger.meta("price_source"),
        "caps": {name: ledger.meta(name) for name in ("max_cost", "max_calls", "max_minutes")},
        "teacher": ledger.meta("teacher") or {},
        "seed": ledger.meta("seed"),
        "stopped": ledger.meta("stopped"),
    }
