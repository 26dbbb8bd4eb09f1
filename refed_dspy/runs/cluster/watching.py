"""What those who watch a run on a cluster see: its numbers over all shards, in a file that the driver writes."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from refed_dspy.files import write_json
from refed_dspy.ledger.live import LIVE
from refed_dspy.runs.cluster.coordinator import Totals

SLOW = 15.0
"""Seconds without a word after which a worker is called slow."""


def write_status(
    folder: Path, totals: Totals, cost: float | None, working: Collection[tuple[str, str]], deaths: int, rate: float
) -> None:
    """Write the run's numbers of this moment. `cost`: dollars, None where a price is unknown; `working`: name and node
    of each worker; `rate`: calls a second."""
    now, heard = time.time(), {name: word.at for name, word in totals.last_words.items()}
    write_json(
        folder / LIVE,
        {
            "at": now,
            "kept": totals.kept,
            "cost": cost,
            "calls": totals.calls,
            "calls_a_second": round(rate, 1),
            "in_flight": sum(word.progress.get("in_flight", 0) for word in totals.last_words.values()),
            "nodes": len({node for _, node in working}),
            "workers": len(working),
            "deaths": deaths,
            "shards": {"all": totals.shards, "done": totals.done, "dry": totals.dry},
            "slow": sorted(name for name, _ in working if now - heard.get(name, now) > SLOW),
        },
    )
