"""The state of a run or of other work, read from its ledger: counts and costs in JSON types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.live import with_live
from refed_dspy.ledger.provenance import model_of, simulated_note
from refed_dspy.ledger.settings import settings_of
from refed_dspy.ledger.spending import in_flight_cost
from refed_dspy.ledger.states import state_of
from refed_dspy.records import PICO

_COLUMNS = (
    "calls", "answered", "prompt_tokens", "cached_tokens", "completion_tokens", "unknown", "cost", "reserved",
    "in_flight_cost", "in_flight", "unpriced", "reasoning_tokens", "rate_limited",
)  # fmt: skip
_OF_MODEL = (
    "calls", "prompt_tokens", "cached_tokens", "completion_tokens", "unknown", "cost", "unpriced", "reasoning_tokens",
)  # fmt: skip


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
    groups, sums = ", ".join(columns), ", ".join(f"total({name})" for name in _COLUMNS)
    query = f"SELECT {groups}, {sums} FROM usage GROUP BY {groups} HAVING sum(calls) ORDER BY min(first)"
    for record in ledger.db.execute(query):
        use: dict[str, Any] = dict(zip(_COLUMNS, map(int, record[len(columns) :]), strict=True))
        for name in ("cost", "reserved", "in_flight_cost"):
            use[name] /= PICO
        if use["unpriced"] and not use["cost"]:
            use["cost"] = None
        yield list(record[: len(columns)]), use


def tokens_a_sample(usage: Mapping[str, Mapping[str, Any]], kept: int) -> dict[str, Any] | None:
    """Tokens per kept sample, of everything that was paid for: by stage (`stages`), and of all stages (`all`).

    Each has `prompt` tokens, of them `cached` by the provider and `uncached`, and `completion` tokens. Calls that
    reported no tokens (`unknown` in the usage) are not counted. None where nothing is kept.
    """
    if not kept:
        return None
    stages = {stage: _tokens_per_sample(use, kept) for stage, use in usage.items()}
    names = ("prompt", "cached", "uncached", "completion")
    return {"stages": stages, "all": {name: round(sum(s[name] for s in stages.values()), 2) for name in names}}


def _tokens_per_sample(use: Mapping[str, Any], kept: int) -> dict[str, float]:
    prompt, cached = use["prompt_tokens"], use["cached_tokens"]
    tokens = {"prompt": prompt, "cached": cached, "uncached": prompt - cached, "completion": use["completion_tokens"]}
    return {name: round(number / kept, 2) for name, number in tokens.items()}


def run_status(ledger: Ledger) -> dict[str, Any]:
    """The state of a run, in JSON types.

    `size` (asked for) and `kept`; `references` in all, `opened`, and `left_out` by reason; `instructions`: how many are
    `new` (also if a filter dropped them at once), `duplicates` or `surplus` (beyond the number asked for); `failures`
    by stage and kind; `usage` by stage; `tokens_a_sample` by stage and in all; `cost` in dollars, without the
    `unpriced` calls; `cost_per_sample`: of the calls that are not in flight; `filters`: what each kept and dropped, by
    reason, and what is to be told of the kept ("unchanged"); `models`: what each used (`usage_by_model`); `state`,
    `reason` and `last_active` (`states.state_of`).
    """
    db, paid = ledger.db, _paid(ledger)
    usage, cost = paid["usage"], paid["cost"]
    in_flight = sum(use["in_flight_cost"] for use in usage.values())
    duplicates, surplus, new = db.execute(
        "SELECT coalesce(sum(duplicates), 0), coalesce(sum(surplus), 0), (SELECT count(*) FROM instructions)"
        " FROM proposals"
    ).fetchone()
    opened = db.execute(
        "SELECT count(*) FROM refs r WHERE EXISTS (SELECT 1 FROM answers WHERE item = r.id"
        " AND stage IN ('instruction_feedback', 'response_feedback'))"
    ).fetchone()[0]
    size, kept, teacher = int(ledger.meta("size") or 0), ledger.kept(), settings_of(ledger).teacher
    return {
        "work": ledger.holds(),
        **state_of(ledger),
        "size": size,
        "kept": kept,
        "references": db.execute("SELECT count(*) FROM refs").fetchone()[0],
        "opened": opened,
        "left_out": ledger.meta("left_out") or {},
        "instructions": {"new": new, "duplicates": duplicates, "surplus": surplus},
        "filters": decisions_by_filter(ledger),
        **paid,
        "tokens_a_sample": tokens_a_sample(usage, kept),
        "cost_per_sample": (cost - in_flight) / kept if kept and cost is not None and not paid["unpriced"] else None,
        "price_source": ledger.meta("price_source"),
        "teacher": {name: value for name, value in teacher.items() if name in {"model", "config"}},
        "seed": (ledger.meta("identity") or {}).get("seed"),
        "models": usage_by_model(ledger),
    }


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


def work_status(ledger: Ledger) -> dict[str, Any]:
    """The state of work over a data set, in JSON types: the kind of `work`; the number of its `rows` (None: unknown),
    and of those `asked` about; on a cluster also `cluster` (`live_numbers`); state, failures, usage and cost as those
    of a run."""
    status = {"work": ledger.holds(), **state_of(ledger), "rows": ledger.meta("size"), "asked": asked_items(ledger)}
    return with_live({**status, **_paid(ledger)}, ledger.path.parent, "asked")


def asked_items(ledger: Ledger) -> int:
    """How many rows were asked about."""
    return int(ledger.db.execute("SELECT count(DISTINCT item) FROM calls").fetchone()[0])


def failure_counts(ledger: Ledger, but: str = "") -> list[dict[str, Any]]:
    """`stage`, `kind` and `count` of the questions that failed, the most first; without the kind `but`."""
    failures = ledger.db.execute(
        "SELECT stage, kind, count(*) FROM failures WHERE kind != ? GROUP BY 1, 2 ORDER BY 3 DESC", (but,)
    )
    return [{"stage": stage, "kind": kind, "count": count} for stage, kind, count in failures]


def _paid(ledger: Ledger) -> dict[str, Any]:
    """Failures by stage and kind, usage by stage, caps, and dollars: without the `unpriced` calls, None if all are; how
    much of them is reserved for calls in flight (`spending.in_flight_cost`). `simulated`: a note where the simulated
    teacher answered, else empty; `limited_since`: when the rate limit refused the last call."""
    usage = usage_by_stage(ledger)
    costs = [use["cost"] for use in usage.values() if use["cost"] is not None]
    return {
        "failures": failure_counts(ledger),
        "usage": usage,
        "cost": sum(costs) if costs or not usage else None,
        "in_flight_cost": in_flight_cost(ledger),
        "unpriced": sum(use["unpriced"] for use in usage.values()),
        "caps": {name: ledger.meta(name) for name in ("max_cost", "max_calls", "max_minutes")},
        "simulated": simulated_note(ledger),
        "limited_since": limited_since(ledger),
    }


def limited_since(ledger: Ledger) -> float | None:
    """When the rate limit refused the last call (seconds since 1970); None where another one was the last, or some are
    in flight."""
    if ledger.db.execute("SELECT total(in_flight) FROM usage").fetchone()[0]:
        return None
    last = ledger.db.execute("SELECT outcome, created + seconds FROM calls ORDER BY id DESC LIMIT 1").fetchone()
    return float(last[1]) if last and last[0] == "http 429" else None
