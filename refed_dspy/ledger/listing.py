"""The work below a folder, at a glance: each ledger's kind of work, state, size and dollars."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from refed_dspy.errors import one_line
from refed_dspy.ledger.connection import FILE, FORMAT, OLDER
from refed_dspy.ledger.fence import EPOCH
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.live import live_numbers
from refed_dspy.ledger.spending import in_flight_cost
from refed_dspy.ledger.states import FUNNEL, RUNNING, state_of, state_without_ledger
from refed_dspy.records import PICO

DEPTH = 3
"""How many levels of folders are looked at."""
_OF_SAMPLES = ("run", "comparison")


def works_below(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The work in `root` and up to DEPTH levels below it, the last active first, and a line for each ledger that cannot
    be read.

    Each has its `folder`, `work`, `state`, `reason`, `last_active`, the `count` that it has made of `size` (samples,
    rows or, in a compile, evaluations; a size may be None) with its `unit` where it needs one ("kept" of a filtering),
    and `cost` in dollars (None: no price is known), of it `in_flight_cost`. Files are not checked for damage, which
    takes long: `Ledger.read` does that.
    """
    works, unreadable = [], []
    for folder in _folders(root, DEPTH):
        try:
            works.append(_glance(folder))
        except (sqlite3.Error, OSError, ValueError, TypeError, LookupError) as error:
            unreadable.append(f"{folder}: cannot be read ({one_line(error, 100)})")
    return sorted(works, key=lambda work: work["last_active"] or "", reverse=True), unreadable


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """`root` and the folders below it with a ledger, or a filtering's funnel. Hidden ones, links and shards are left
    out."""
    if (root / EPOCH).is_file():  # a shard: its run is listed
        return
    if (root / FILE).is_file() or (root / FUNNEL).is_file():
        yield root
    if not depth:
        return
    try:
        inner = sorted(entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
    except OSError:  # not ours to look into
        return
    for name in inner:
        if not name.startswith("."):
            yield from _folders(root / name, depth - 1)


def _glance(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not path.is_file():
        made = {**_kept(folder), "cost": 0.0, "in_flight_cost": 0.0}
        return {"folder": str(folder), "work": "filtering", **state_without_ledger(folder), **made}
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1)) as db:
        db.execute("PRAGMA query_only=ON")
        if (version := db.execute("PRAGMA user_version").fetchone()[0]) not in {FORMAT, *OLDER}:
            raise ValueError(f"format {version}, this version reads {FORMAT}")
        ledger = Ledger(path, db, None)
        work, size = ledger.holds(), ledger.meta("size")
        cost, unpriced = db.execute("SELECT total(cost), total(unpriced) FROM usage").fetchone()
        counted = "samples" if work in _OF_SAMPLES else "evaluations" if work == "compile" else ""
        of = f"SELECT count(*) FROM {counted}" if counted else "SELECT count(DISTINCT item) FROM calls"
        state = state_of(ledger)
        live = live_numbers(folder) if state["state"] == RUNNING else None
        return {
            "folder": str(folder),
            "work": work,
            **state,
            "count": int(db.execute(of).fetchone()[0]),
            "size": size if counted != "evaluations" else None,
            "unit": "evaluations" if work == "compile" else "",
            **(_kept(folder) if (folder / FUNNEL).is_file() else {}),
            "cost": None if unpriced and not cost else cost / PICO,
            "in_flight_cost": in_flight_cost(ledger),
            **({"count": live["kept"], "cost": live["cost"]} if live else {}),
        }


def _kept(folder: Path) -> dict[str, Any]:
    """How many rows the filtering in `folder` kept, of how many."""
    passes = json.loads((folder / FUNNEL).read_text(encoding="utf-8"))
    return {"count": passes[-1]["kept"], "size": passes[0]["in"], "unit": "kept"}
