"""What a compile's ledger holds of its candidates: what they are, and what they scored."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.rows import Statement


@dataclass(frozen=True)
class Trial:
    """One candidate: example → score and parts, on each subset it was tried on."""

    digest: str
    seq: int
    state: dict[str, Any]
    created: float
    scores: Mapping[str, Mapping[str, float]]
    """Subset → example → score."""
    parts: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Subset → example → the metric's parts."""
    cost: int
    """Picodollars paid for it; what it shared with an earlier candidate was paid for that one."""
    spent: int
    """What the compile had cost when it was last scored on what the optimizer sees, picodollars."""

    def mean(self, subset: str) -> float | None:
        """Its mean score there, or None."""
        scores = self.scores.get(subset)
        return sum(scores.values()) / len(scores) if scores else None


def tried(digest: str, seq: int, state: Mapping[str, Any]) -> list[Statement]:
    """A candidate is seen for the first time."""
    row = (digest, seq, json.dumps(state, ensure_ascii=False), time.time())
    return [("INSERT OR IGNORE INTO candidates VALUES (?,?,?,?)", row)]


def scored(
    candidate: str, example: str, subset: str, score: float, parts: Mapping[str, float], spent: int
) -> list[Statement]:
    """A candidate was scored on one example. Scored again it keeps the time of the first, and what was spent then."""
    row = (candidate, example, subset, score, json.dumps(dict(parts)), spent, time.time())
    again = "ON CONFLICT (candidate, example) DO UPDATE SET score=excluded.score, parts=excluded.parts"
    return [(f"INSERT INTO evaluations VALUES (?,?,?,?,?,?,?) {again}", row)]


def trials(ledger: Ledger) -> list[Trial]:
    """All candidates in the order in which they were first seen."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    spent: dict[str, int] = {}
    rows = ledger.db.execute("SELECT candidate, example, subset, score, parts, spent FROM evaluations ORDER BY created")
    for candidate, example, subset, score, told, cost in rows:
        scores.setdefault(candidate, {}).setdefault(subset, {})[example] = score
        parts.setdefault(candidate, {}).setdefault(subset, {})[example] = json.loads(told)
        if subset != "test":  # the proof comes after all the rest, and finds nothing
            spent[candidate] = max(cost, spent.get(candidate, 0))
    paid = dict(ledger.db.execute("SELECT item, total(cost) FROM calls GROUP BY item"))
    return [
        Trial(
            *(digest, seq, json.loads(state), created),
            scores.get(digest, {}),
            parts.get(digest, {}),
            int(paid.get(digest, 0)),
            spent.get(digest, 0),
        )
        for digest, seq, state, created in ledger.db.execute(
            "SELECT digest, seq, state, created FROM candidates ORDER BY seq"
        )
    ]
