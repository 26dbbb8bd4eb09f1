"""One account of paid work, read once from its ledger: what it came to, how it was set up, and its course by the
minute.

`refed status`, the report, the card and MLflow tell the same facts from it, each in its own words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from refed_dspy.errors import CAPS
from refed_dspy.ledger.history import simulated_note
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import WorkSettings, settings_of
from refed_dspy.ledger.spending import in_flight_cost
from refed_dspy.ledger.states import state_of
from refed_dspy.ledger.summary import (
    OF_SAMPLES,
    USED,
    asked_items,
    decisions_by_filter,
    failure_counts,
    limited_since,
    usage_by_model,
    usage_by_stage,
)
from refed_dspy.records import PICO, digest, money

# Per minute since the run first began: calls, dollars, tokens, failed calls; and samples.
_CALLS = """
SELECT CAST((created + seconds - :begun) / 60 AS INTEGER) minute, count(*), total(cost), total(prompt_tokens),
       total(completion_tokens), sum(outcome != 'ok')
FROM calls WHERE outcome != 'sent' GROUP BY minute ORDER BY minute
"""
_SAMPLES = (
    "SELECT CAST((created - :begun) / 60 AS INTEGER) minute, count(*) FROM samples GROUP BY minute ORDER BY minute"
)
_COUNTS = ("calls", "dollars", "prompt_tokens", "completion_tokens", "failed_calls")


@dataclass(frozen=True)
class RunAccount:
    """A run, or other work, as its ledger has it. Names and addresses are as it used them: whoever publishes it redacts
    them."""

    status: Mapping[str, Any]
    """State, counts, costs and reasons, in JSON types (`status_of`)."""
    settings: WorkSettings
    """What it was last started with."""
    program: str
    """The program's class."""
    prompts: Mapping[str, str]
    """Predictor → the digest of its prompt."""
    source: Mapping[str, Any]
    """Where a saved program came from."""
    references: str
    """The digest of all references."""
    features: Mapping[str, str]
    """Name → what feedback on an instruction looks for."""
    instructions_per_feature: int | None
    judge_identity: Mapping[str, Any]
    filters: Sequence[tuple[str, Mapping[str, Any]]]
    """Label and identity of each, in order."""
    asked: Sequence[Any]
    """The identities of all teachers that were asked in any start."""

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """The account as it stands now."""
        identity = ledger.meta("identity") or {}
        return cls(
            status=status_of(ledger),
            settings=settings_of(ledger),
            program=str(identity.get("kind", "")),
            prompts=identity.get("program") or {},
            source={name: value for name, value in (ledger.meta("program_source") or {}).items() if value is not None},
            references=str(identity.get("references", "")),
            features=ledger.meta("features") or dict.fromkeys(identity.get("features") or (), ""),
            instructions_per_feature=identity.get("instructions_per_feature"),
            judge_identity=identity.get("judge") or {},
            filters=[(str(label), settings) for label, settings in identity.get("filters") or ()],
            asked=list(ledger.meta("asked_teachers") or ()),
        )

    @property
    def prompts_digest(self) -> str:
        return digest(self.prompts)

    @property
    def pools(self) -> dict[str, str]:
        """Stage → its teachers' names; under ANY those of every other stage."""
        return {
            stage: " + ".join(str(member.get("model") or "") for member in pool)
            for stage, pool in self.settings.pools.items()
        }


def per_minute(ledger: Ledger) -> dict[int, dict[str, float]]:
    """Minute since the first start → running totals at its end, and that time in seconds since the epoch."""
    row = ledger.db.execute("SELECT min(begun) FROM starts").fetchone()
    if row[0] is None:
        return {}
    begun = float(row[0])
    calls = {int(m): counts for m, *counts in ledger.db.execute(_CALLS, {"begun": begun})}
    samples = {int(m): int(count) for m, count in ledger.db.execute(_SAMPLES, {"begun": begun})}
    totals = dict.fromkeys((*_COUNTS, "kept"), 0.0)
    points = {}
    for minute in sorted({*calls, *samples}):
        for name, count in zip(_COUNTS, calls.get(minute, [0] * len(_COUNTS)), strict=True):
            totals[name] += count / PICO if name == "dollars" else count
        totals["kept"] += samples.get(minute, 0)
        points[minute] = {**totals, "time": begun + 60 * (minute + 1)}
    return points


def spent_text(status: Mapping[str, Any]) -> str:
    """What `status` says was spent, without calls under way, for people."""
    cost = status["cost"]
    return money(cost if cost is None else cost - status["in_flight_cost"], status.get("unpriced", 0))


def status_of(ledger: Ledger) -> dict[str, Any]:
    """How the work stands, in JSON types: its kind (`work`), `state`, `reason` and `last_active` (`states.state_of`).

    `failures` by stage and kind; `usage` by stage, and of all stages (`used`); `models`: what each used
    (`usage_by_model`); `cost` in dollars without the `unpriced` calls, None if all are; how much of it is reserved for
    calls in flight (`in_flight_cost`); `caps`; `simulated`: a note where the simulated teacher answered, else empty;
    `limited_since`: when the rate limit refused the last call. A run's and a comparison's also has `_of_samples`; any
    other's the number of its `rows` (None: unknown), and of those `asked` about.
    """
    work, usage = ledger.holds(), usage_by_stage(ledger)
    costs = [use["cost"] for use in usage.values() if use["cost"] is not None]
    used = {name: sum(use[name] or 0 for use in usage.values()) for name in USED}
    status = {
        "work": work,
        **state_of(ledger),
        "failures": failure_counts(ledger),
        "usage": usage,
        "used": used,
        "models": usage_by_model(ledger),
        "cost": sum(costs) if costs or not usage else None,
        "in_flight_cost": in_flight_cost(ledger),
        "unpriced": used["unpriced"],
        "caps": {name: ledger.meta(name) for name in CAPS},
        "simulated": simulated_note(ledger),
        "limited_since": limited_since(ledger),
    }
    if work in OF_SAMPLES:
        return status | _of_samples(ledger, status)
    return {**status, "rows": ledger.meta("size"), "asked": asked_items(ledger)}


def _of_samples(ledger: Ledger, status: Mapping[str, Any]) -> dict[str, Any]:
    """`size` (asked for) and `kept`; `references` in all, `opened`, and `left_out` by reason; `instructions`: how many
    are `new` (also if a filter dropped them at once), `duplicates` or `surplus` (beyond the number asked for);
    `tokens_a_sample` by stage and in all; `cost_per_sample`: of the calls that are not in flight; `filters`: what each
    kept and dropped, by reason, and what is to be told of the kept ("unchanged")."""
    db, kept, cost = ledger.db, ledger.kept(), status["cost"]
    duplicates, surplus, new = db.execute(
        "SELECT coalesce(sum(duplicates), 0), coalesce(sum(surplus), 0), (SELECT count(*) FROM instructions)"
        " FROM proposals"
    ).fetchone()
    opened = db.execute(
        "SELECT count(*) FROM refs r WHERE EXISTS (SELECT 1 FROM answers WHERE item = r.id"
        " AND stage IN ('instruction_feedback', 'response_feedback'))"
        " OR position IN (SELECT reference FROM proposals)"
    ).fetchone()[0]
    priced = kept and cost is not None and not status["unpriced"]
    teacher = settings_of(ledger).teacher
    return {
        "size": int(ledger.meta("size") or 0),
        "kept": kept,
        "references": db.execute("SELECT count(*) FROM refs").fetchone()[0],
        "opened": opened,
        "left_out": ledger.meta("left_out") or {},
        "instructions": {"new": new, "duplicates": duplicates, "surplus": surplus},
        "filters": decisions_by_filter(ledger),
        "tokens_a_sample": tokens_a_sample(status["usage"], kept),
        "cost_per_sample": (cost - status["used"]["in_flight_cost"]) / kept if priced else None,
        "price_source": ledger.meta("price_source"),
        "teacher": {name: value for name, value in teacher.items() if name in {"model", "config"}},
        "seed": (ledger.meta("identity") or {}).get("seed"),
    }


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
