"""The candidates of a compile in its ledger: each program that was tried, and its scores."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from refed_dspy.ledger.connection import damaged
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Key, Statement, failed
from refed_dspy.records import Compared

MOST = 2**63 - 1
"""No whole number of a ledger is larger: SQLite has none."""
ENOUGH = 0.8
"""A mean over a smaller share of a set says nothing about a candidate: a cap or a fault cut its evaluation short."""
ABSTAINED = "abstained"
"""The kind under which evaluations that could not be scored are recorded among a compile's failures."""
COMPARED = "refed.compared"
"""Where the verdicts behind a score stand among its components, whose names a caller's metric may choose."""


@dataclass(frozen=True)
class Candidate:
    """A program that was tried, and its score on each example of each subset that it was tried on."""

    digest: str
    seq: int
    state: dict[str, Any]
    created: float
    scores: Mapping[str, Mapping[str, float]]
    """Subset → example → score."""
    components: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Subset → example → the components of the score."""
    cost: int
    """Picodollars paid for its calls. A call shared with an earlier candidate counts for that one."""
    spent: int
    """What the compile had cost when it was last scored on what the optimizer sees, in picodollars."""
    compared: Mapping[str, Mapping[str, Compared]] = field(default_factory=dict)
    """Subset → example → the verdicts behind its score, where there are some."""

    def mean(self, subset: str) -> float | None:
        """Its mean score on `subset`, or None."""
        scores = self.scores.get(subset)
        return sum(scores.values()) / len(scores) if scores else None

    def undiscounted(self, subset: str) -> dict[str, float]:
        """Example → its score on `subset` before longer answers were discounted."""
        components = self.components.get(subset, {})
        scores = self.scores.get(subset, {})
        return {each: score + components.get(each, {}).get("length_cost", 0.0) for each, score in scores.items()}

    def component_means(self, subset: str) -> dict[str, float]:
        """Component → its mean on `subset`, over the examples that have it; sorted by name."""
        evaluations = self.components.get(subset, {}).values()
        values = {
            name: [components[name] for components in evaluations if name in components]
            for name in sorted({name for components in evaluations for name in components})
        }
        return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def enough(scored: int, size: int) -> bool:
    """Whether a mean over `scored` examples stands for a set of `size`."""
    return scored >= ENOUGH * max(1, size)


def baseline_and_best(candidates: Sequence[Candidate]) -> tuple[float | None, float | None]:
    """Mean validation scores of the first candidate (the uncompiled program), and of the best of those that were scored
    on as many examples; None before there is one."""
    counts = [len(candidate.scores.get("validation", {})) for candidate in candidates]
    means = [candidate.mean("validation") for candidate in candidates]
    whole = [mean for mean, count in zip(means, counts, strict=True) if mean is not None and enough(count, counts[0])]
    return (means[0] if means else None), max(whole, default=None)


def candidate_seen(digest: str, seq: int, state: Mapping[str, Any]) -> list[Statement]:
    """Write down a candidate when it is seen for the first time."""
    row = (digest, seq, json.dumps(state, ensure_ascii=False), time.time())
    return [("INSERT OR IGNORE INTO candidates VALUES (?,?,?,?)", row)]


def evaluation_scored(
    candidate: str,
    example: str,
    subset: str,
    score: float,
    components: Mapping[str, float],
    spent: int,
    compared: Compared | None = None,
) -> list[Statement]:
    """Write down a candidate's score on one example. Scored again, it keeps its first time and what was spent then."""
    stored = {**components, COMPARED: asdict(compared)} if compared else dict(components)
    row = (candidate, example, subset, score, json.dumps(stored), min(spent, MOST), time.time())
    again = "ON CONFLICT (candidate, example) DO UPDATE SET score=excluded.score, components=excluded.components"
    return [(f"INSERT INTO evaluations VALUES (?,?,?,?,?,?,?) {again}", row)]


def evaluation_abstained(candidate: str, example: str, subset: str, reason: str) -> list[Statement]:
    """Write down that a candidate could not be scored on one example. If it is scored later, the score counts."""
    return failed(Key(subset, candidate, 0, f"{ABSTAINED} {candidate} {example}"), ABSTAINED, reason, False, [])


def count_abstentions(ledger: Ledger) -> int:
    """How many evaluations could not be scored."""
    since = "SELECT 1 FROM evaluations WHERE candidate = item AND key = kind || ' ' || candidate || ' ' || example"
    query = f"SELECT count(*) FROM failures WHERE kind = ? AND NOT EXISTS ({since})"
    return int(ledger.db.execute(query, (ABSTAINED,)).fetchone()[0])


def examples_of(ledger: Ledger) -> Mapping[str, Any]:
    """What the compile in `ledger` recorded of its examples (`optimizers.spec`). Up to version 0.2.0 and shortly after
    it stood among its settings."""
    about = ledger.meta("about") or {}
    return ledger.meta("examples") or {**about, **({"unit": about["examples"]} if "examples" in about else {})}


def load_candidates(ledger: Ledger) -> list[Candidate]:
    """All candidates, in the order in which they were first seen.

    Raises RunDirError where the one that the compile kept is lost: the file is damaged.
    """
    scores: dict[str, dict[str, dict[str, float]]] = {}
    components: dict[str, dict[str, dict[str, Any]]] = {}
    compared: dict[str, dict[str, dict[str, Compared]]] = {}
    spent: dict[str, int] = {}
    evaluations = ledger.db.execute(
        "SELECT candidate, example, subset, score, components, spent FROM evaluations ORDER BY created"
    )
    for candidate, example, subset, score, components_json, spent_then in evaluations:
        scores.setdefault(candidate, {}).setdefault(subset, {})[example] = score
        stored = dict(ledger.parsed(dict[str, float | Compared], components_json))
        for name, value in [*stored.items()]:
            if isinstance(value, Compared):  # by its kind: it had another name in earlier ledgers
                compared.setdefault(candidate, {}).setdefault(subset, {})[example] = value
                del stored[name]
        components.setdefault(candidate, {}).setdefault(subset, {})[example] = stored
        if subset != "test":  # the proof comes last, and has no part in the search
            spent[candidate] = max(spent_then, spent.get(candidate, 0))
    paid = dict(ledger.db.execute("SELECT item, total(cost) FROM calls GROUP BY item"))
    found = [
        Candidate(
            digest=digest,
            seq=seq,
            state=ledger.parsed(dict[str, Any], state),
            created=created,
            scores=scores.get(digest, {}),
            components=components.get(digest, {}),
            cost=int(paid.get(digest, 0)),
            spent=spent.get(digest, 0),
            compared=compared.get(digest, {}),
        )
        for digest, seq, state, created in ledger.db.execute(
            "SELECT digest, seq, state, created FROM candidates ORDER BY seq"
        )
    ]
    kept = (ledger.meta("outcome") or {}).get("candidate")
    if kept and kept not in {candidate.digest for candidate in found}:
        raise damaged(ledger.path, "the candidate that was kept is lost")
    return found
