"""What a compile's ledger holds of its candidates: what they are, and what they scored."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Key, Statement, failed

ENOUGH = 0.8
"""A mean over less of a set than this says nothing of a candidate: the cap, or a fault, cut its evaluation short."""
ABSTAINED = "abstained"
"""The kind under which evaluations that nothing could be said of stand among a compile's failures."""


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

    def part_means(self, subset: str) -> dict[str, float]:
        """Part → its mean there, over the examples that have it; by name."""
        parts = self.parts.get(subset, {}).values()
        told = {name: [one[name] for one in parts if name in one] for name in sorted({n for one in parts for n in one})}
        return {name: sum(values) / len(values) for name, values in told.items()}


def enough(scored_on: int, of: int) -> bool:
    """Whether a mean over `scored_on` examples speaks for a set `of` so many."""
    return scored_on >= ENOUGH * max(1, of)


def validation_means(known: Sequence[Trial]) -> tuple[float | None, float | None]:
    """Mean score on the validation set of the first candidate (the uncompiled program), and the best of all; None
    before there is one."""
    means = [mean for trial in known if (mean := trial.mean("validation")) is not None]
    return (known[0].mean("validation") if known else None), max(means, default=None)


def tried(digest: str, seq: int, state: Mapping[str, Any]) -> list[Statement]:
    """A candidate is seen for the first time."""
    row = (digest, seq, json.dumps(state, ensure_ascii=False), time.time())
    return [("INSERT OR IGNORE INTO candidates VALUES (?,?,?,?)", row)]


def scored(
    candidate: str, example: str, subset: str, score: float, parts: Mapping[str, float], spent: int
) -> list[Statement]:
    """A candidate was scored on one example. Scored again it keeps the time of the first, and what was spent then."""
    row = (candidate, example, subset, score, json.dumps(dict(parts)), spent, time.time())
    again = "ON CONFLICT (candidate, example) DO UPDATE SET score=excluded.score, components=excluded.components"
    return [(f"INSERT INTO evaluations VALUES (?,?,?,?,?,?,?) {again}", row)]


def abstained(candidate: str, example: str, subset: str, reason: str) -> list[Statement]:
    """Nothing could be said of a candidate on one example, so far: where it is scored after all, that counts."""
    return failed(Key(subset, candidate, 0, "", "", f"{ABSTAINED} {candidate} {example}"), ABSTAINED, reason, False, [])


def abstentions(ledger: Ledger) -> int:
    """How many evaluations nothing could be said of."""
    since = "SELECT 1 FROM evaluations WHERE candidate = item AND key = kind || ' ' || candidate || ' ' || example"
    query = f"SELECT count(*) FROM failures WHERE kind = ? AND NOT EXISTS ({since})"
    return int(ledger.db.execute(query, (ABSTAINED,)).fetchone()[0])


def forgotten() -> list[Statement]:
    """There are no candidates any more, and nothing that was said of them."""
    of_them = [("DELETE FROM candidates", ()), ("DELETE FROM evaluations", ())]
    return [*of_them, ("DELETE FROM failures WHERE kind=?", (ABSTAINED,))]


def trials(ledger: Ledger) -> list[Trial]:
    """All candidates in the order in which they were first seen."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    spent: dict[str, int] = {}
    rows = ledger.db.execute(
        "SELECT candidate, example, subset, score, components, spent FROM evaluations ORDER BY created"
    )
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
