"""What a ledger counts of work (usage, decisions, failures), the time left, and the state of all the work below a
folder, in JSON types."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from refed_dspy.errors import one_line
from refed_dspy.ledger.connection import EPOCH, FILE
from refed_dspy.ledger.format import FORMAT, OLDER
from refed_dspy.ledger.history import model_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import in_flight_cost
from refed_dspy.ledger.states import FUNNEL, RUNNING, state_of, state_without_ledger
from refed_dspy.records import PICO

LIVE = "cluster.json"
"""The file in the work's folder, which the driver writes every moment."""
USED = (
    "calls", "answered", "prompt_tokens", "cached_tokens", "completion_tokens", "unknown", "cost", "reserved",
    "in_flight_cost", "in_flight", "unpriced", "reasoning_tokens", "rate_limited",
)  # fmt: skip
_OF_MODEL = (
    "calls", "prompt_tokens", "cached_tokens", "completion_tokens", "unknown", "cost", "unpriced", "reasoning_tokens",
)  # fmt: skip
DEPTH = 3
"""How many levels of folders are looked at."""
OF_SAMPLES = ("", "run", "comparison")
"""Works whose ledgers have samples; "": not begun."""
LEAST, FEW = 10, 5
"""Samples in the window from which the pace is read; and calls, where there are fewer samples."""


def live_numbers(folder: Path) -> dict[str, Any] | None:
    """What was written last: `at` (seconds since 1970), `kept`, `cost` in dollars, `calls`, `calls_a_second`,
    `in_flight`, `nodes`, `workers`, `deaths`, `shards`, and workers that are `slow`. None for work in one process."""
    try:
        return dict(json.loads((folder / LIVE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def usage_by_stage(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """Stage → its calls and what they used.

    `answered` calls; tokens (`reasoning_tokens` are a part of the completion's); `unknown`: calls that may have been
    billed but reported no tokens; `cost` in dollars, and how much of it is `reserved` for those `unknown` calls at
    their worst case; `in_flight` calls and the reservations for them (`in_flight_cost`, part of `cost`);
    `rate_limited`: calls that a rate limit refused; `unpriced`: calls whose price is unknown. They are not in `cost`,
    which is None if there are no others.
    """
    return {stage: use for (stage,), use in _usage_by(ledger, "stage")}


def usage_by_model(ledger: Ledger) -> list[dict[str, Any]]:
    """For each `model` at an `endpoint`: calls and usage, as of each stage in `usage_by_stage`."""
    return [
        {"model": model_of(model, endpoint), "endpoint": endpoint, **{name: use[name] for name in _OF_MODEL}}
        for (model, endpoint), use in _usage_by(ledger, "model", "endpoint")
    ]


def _usage_by(ledger: Ledger, *columns: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """(values of `columns`, usage of the calls that have them), in the order of their first calls."""
    groups, sums = ", ".join(columns), ", ".join(f"total({name})" for name in USED)
    query = f"SELECT {groups}, {sums} FROM usage GROUP BY {groups} HAVING sum(calls) ORDER BY min(first)"
    for record in ledger.db.execute(query):
        use: dict[str, Any] = dict(zip(USED, map(int, record[len(columns) :]), strict=True))
        for name in ("cost", "reserved", "in_flight_cost"):
            use[name] /= PICO
        if use["unpriced"] and not use["cost"]:
            use["cost"] = None
        yield list(record[: len(columns)]), use


def decisions_by_filter(ledger: Ledger) -> list[dict[str, Any]]:
    """For each filter of the run, in order: how many rows it `kept` and `dropped`, the `reasons` of drops with counts,
    and the `remarks` on kept ones with counts."""
    filters: dict[str, dict[str, Any]] = {}
    for name, kept, reason, count in ledger.db.execute(
        "SELECT filter, kept, reason, count(*) FROM decisions GROUP BY position, filter, kept, reason"
        " ORDER BY position, count(*) DESC"
    ):
        new = {"filter": name, "kept": 0, "dropped": 0, "reasons": {}, "remarks": {}}
        counts = filters.setdefault(name, new)
        counts["kept" if kept else "dropped"] += count
        if not kept:
            counts["reasons"][reason] = count
        for remark in filter(None, reason.split("; ") if kept else ()):
            counts["remarks"][remark] = counts["remarks"].get(remark, 0) + count
    return list(filters.values())


def asked_items(ledger: Ledger) -> int:
    """How many rows were asked about."""
    return int(ledger.db.execute("SELECT count(DISTINCT item) FROM calls").fetchone()[0])


def failure_counts(ledger: Ledger, but: str = "") -> list[dict[str, Any]]:
    """`stage`, `kind` and `count` of the questions that failed, the most first; without the kind `but`."""
    failures = ledger.db.execute(
        "SELECT stage, kind, count(*) FROM failures WHERE kind != ? GROUP BY 1, 2 ORDER BY 3 DESC", (but,)
    )
    return [{"stage": stage, "kind": kind, "count": count} for stage, kind, count in failures]


def limited_since(ledger: Ledger) -> float | None:
    """When the rate limit refused the last call (seconds since 1970); None where another one was the last, or some are
    in flight."""
    if ledger.db.execute("SELECT total(in_flight) FROM usage").fetchone()[0]:
        return None
    last = ledger.db.execute("SELECT outcome, created + seconds FROM calls ORDER BY id DESC LIMIT 1").fetchone()
    return float(last[1]) if last and last[0] == "http 429" else None


def works_below(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The work in `root` and up to DEPTH levels below it, the last active first, and a line for each ledger that cannot
    be read.

    Each has its `folder`, `work`, `state`, `reason`, `last_active`, the `count` that it has made of `size` (samples,
    rows, evaluations of a compile, answers of a recording; a size may be None) with its `unit` where it needs one
    ("kept" of a filtering), and `cost` in dollars (None: no price is known), of it `in_flight_cost`. Files are not
    checked for damage, which takes long: `Ledger.read` does that.
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
        sized = {"compile": "evaluations", "recording": "answers"}
        counted = "samples" if work in OF_SAMPLES else sized.get(work, "")
        of = f"SELECT count(*) FROM {counted}" if counted else "SELECT count(DISTINCT item) FROM calls"
        state = state_of(ledger)
        live = live_numbers(folder) if state["state"] == RUNNING else None
        return {
            "folder": str(folder),
            "work": work,
            **state,
            "count": int(db.execute(of).fetchone()[0]),
            "size": None if work in sized else size,
            "unit": sized.get(work, ""),
            **(_kept(folder) if (folder / FUNNEL).is_file() else {}),
            "cost": None if unpriced and not cost else cost / PICO,
            "in_flight_cost": in_flight_cost(ledger),
            **({"count": live["kept"], "cost": live["cost"]} if live else {}),
        }


def _kept(folder: Path) -> dict[str, Any]:
    """How many rows the filtering in `folder` kept, of how many."""
    passes = json.loads((folder / FUNNEL).read_text(encoding="utf-8"))
    return {"count": passes[-1]["kept"], "size": passes[0]["in"], "unit": "kept"}


def seconds_left(moments: Sequence[float], now: float, missing: int, in_flight: int) -> float | None:
    """Seconds until `missing` more samples are there, or None while too few came to tell.

    The pace is that of the last half of the samples that came at `moments`, until `now`. The first half holds what
    comes once: the models' start, the climb to full concurrency, feedback on the first references. The first samples
    come in bursts, so the window must hold as many as there are calls in flight.
    """
    window = len(moments) // 2
    if window < max(LEAST, in_flight):
        return None
    return max(0.0, now - moments[-window - 1]) / window * missing


def seconds_left_by_calls(seconds: float, calls: int, expected: int, in_flight: int) -> float | None:
    """The same from how many calls were answered in so many `seconds`, of how many that are `expected`: rougher, since
    the calls of one stage take longer than another's, but known from the first samples on."""
    if calls < max(FEW, in_flight) or expected <= calls:
        return None
    return seconds / calls * (expected - calls)


def time_left(seconds: float) -> str:
    """`seconds_left` for people."""
    return "a few seconds left" if seconds < 7.5 else f"about {span(seconds)} left"


def span(seconds: float) -> str:
    """A length of time, rounded to what is known of one."""
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{5 * round(minutes / 5) if minutes > 20 else round(minutes)} min"
    return f"{minutes / 60:.0f} h" if minutes > 600 else f"{minutes / 60:.1f} h"
