"""What a ledger says of its run: counts for people and for scripts."""

from __future__ import annotations

from typing import Any

from refed_dspy.engine.ledger import Ledger

_STAGES = """
SELECT stage, count(*), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),
       sum(outcome = 'ok'), sum(prompt_tokens IS NULL AND outcome NOT LIKE 'http 4%' AND outcome NOT LIKE 'http 5%')
FROM calls GROUP BY stage ORDER BY min(id)
"""


def usage_by_stage(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Stage → calls, tokens, answers, and `unknown`: calls that may have been billed but reported no tokens."""
    return {
        stage: {
            "calls": calls,
            "answered": answered or 0,
            "prompt_tokens": prompt or 0,
            "cached_tokens": cached or 0,
            "completion_tokens": completion or 0,
            "unknown": unknown or 0,
        }
        for stage, calls, prompt, cached, completion, answered, unknown in ledger.db.execute(_STAGES)
    }


def run_status(ledger: Ledger) -> dict[str, Any]:
    """The run at a glance, in JSON types.

    `size` asked for and `kept`; `references` in all, `opened` and `left_out` by reason; `instructions` that are
    `duplicates` or `surplus` (beyond the number asked for); `failures` by stage and kind; `usage` by stage.
    """
    db = ledger.db
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
        "usage": usage_by_stage(ledger),
        "teacher": ledger.meta("teacher") or {},
        "seed": ledger.meta("seed"),
        "stopped": ledger.meta("stopped"),
    }
