"""The numbers of work on a cluster while it is at work: its ledger has them once its shards are gathered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LIVE = "cluster.json"
"""The file in the work's folder, which the driver writes every moment."""


def live_numbers(folder: Path) -> dict[str, Any] | None:
    """What was written last: `at` (seconds since 1970), `kept`, `cost` in dollars, `calls`, `calls_a_second`,
    `in_flight`, `nodes`, `workers`, `deaths`, `shards`, and workers that are `slow`. None for work in one process."""
    try:
        return dict(json.loads((folder / LIVE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def with_live(status: dict[str, Any], folder: Path, count: str) -> dict[str, Any]:
    """The `status` of the work in `folder`, with these numbers as `cluster`; while it is running its `count` and its
    `cost` are among them."""
    if (cluster := live_numbers(folder)) is None:
        return status
    live = {count: cluster["kept"], "cost": cluster["cost"]} if status["state"] == "running" else {}
    return {**status, **live, "cluster": cluster}
