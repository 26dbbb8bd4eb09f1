"""From what the teacher proposed to what is in the data set: how many rows each step kept, and why others went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from refed_dspy.ledger.ledger import Ledger

OPEN = "not asked about, or on their way"
_PLAIN = "response_generation"
_ANSWERED = "SELECT count(*) FROM instructions WHERE CAST(id AS TEXT) IN (SELECT item FROM answers WHERE stage = ?)"
# Units of the response itself (`response_generation`), or of what improves it. A judge's failure loses no row here.
_FAILED = """
SELECT kind, count(*) FROM failures
WHERE (stage = 'response_generation') = ? AND stage NOT LIKE '%judge'
  AND item IN (SELECT CAST(id AS TEXT) FROM instructions)
GROUP BY kind ORDER BY 2 DESC
"""
# A filter of responses decides on rows that have one; so whoever decided on others looks at instructions alone.
_EARLY = """
SELECT DISTINCT filter FROM decisions
WHERE CAST(instruction AS TEXT) NOT IN (SELECT item FROM answers WHERE stage = ?)
"""


@dataclass(frozen=True)
class FunnelStep:
    """`count` rows came through; `lost`: why others did not, with how many."""

    name: str
    count: int
    lost: Mapping[str, int] = field(default_factory=dict)


def funnel(ledger: Ledger, status: Mapping[str, Any]) -> list[FunnelStep]:
    """The run's steps in their order, each with what it lost of the one before. `status`: see `run_status`.

    Each step's losses and its count come to the count of the step before.
    """
    made = status["instructions"]
    lost = {"duplicates": made["duplicates"], "beyond the number asked for": made["surplus"]}
    (new,) = ledger.db.execute("SELECT count(*) FROM instructions").fetchone()  # also what filters dropped at once
    told = [FunnelStep("instructions written", new + sum(lost.values())), FunnelStep("new ones", new, _there(lost))]
    for step in [*_later(ledger, status), FunnelStep("in the data set", status["kept"])]:
        left = told[-1].count - step.count - sum(step.lost.values())
        told.append(FunnelStep(step.name, step.count, _there({**step.lost, OPEN: left})))
    return told


def _later(ledger: Ledger, status: Mapping[str, Any]) -> Iterator[FunnelStep]:
    final = str(ledger.meta("final_stage") or "response_improvement")
    early = set()
    if status["filters"]:  # one that looks at instructions alone dropped some before a response was paid for
        early = {name for (name,) in ledger.db.execute(_EARLY, (final,))}
    yield from (_kept_by(one) for one in status["filters"] if one["filter"] in early)
    for name, stage in (("answered", _PLAIN), ("improved", final)):
        if name == "improved" and final == _PLAIN:
            continue
        (count,) = ledger.db.execute(_ANSWERED, (stage,)).fetchone()
        failed = {f"failed: {kind}": number for kind, number in ledger.db.execute(_FAILED, (stage == _PLAIN,))}
        yield FunnelStep(name, count, failed)
    yield from (_kept_by(one) for one in status["filters"] if one["filter"] not in early)


def _kept_by(one: Mapping[str, Any]) -> FunnelStep:
    return FunnelStep(f"kept by {one['filter']}", one["kept"], one["reasons"])


def _there(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count > 0}
