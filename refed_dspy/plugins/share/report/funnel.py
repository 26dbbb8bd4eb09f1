"""From proposed instructions to the data set: how many rows each step kept, and why the others were lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from refed_dspy.ledger.ledger import Ledger

_PLAIN = "response_generation"
_ANSWERED = "SELECT count(*) FROM instructions WHERE CAST(id AS TEXT) IN (SELECT item FROM answers WHERE stage = ?)"
# Failures of the plain response (`response_generation`), or of its improvement. A judge's failure loses no row here.
_FAILED = """
SELECT kind, count(*) FROM failures
WHERE (stage = 'response_generation') = ? AND stage NOT LIKE '%judge'
  AND item IN (SELECT CAST(id AS TEXT) FROM instructions)
GROUP BY kind ORDER BY 2 DESC
"""
# A filter of responses decides only on rows that have one, so a filter that decided on others looks at instructions.
_EARLY = """
SELECT DISTINCT filter FROM decisions
WHERE CAST(instruction AS TEXT) NOT IN (SELECT item FROM answers WHERE stage = ?)
"""


@dataclass(frozen=True)
class FunnelStep:
    """`count` rows passed; `lost`: reason → how many were lost to it; `open`: how many are neither, since they
    were not asked about, or are in flight."""

    name: str
    count: int
    lost: Mapping[str, int] = field(default_factory=dict)
    open: int = 0


def funnel(ledger: Ledger, status: Mapping[str, Any]) -> list[FunnelStep]:
    """The run's steps in order, each with its losses from the step before. `status`: see `run_status`.

    A step's count, its losses and what is open add up to the count of the step before.
    """
    made = status["instructions"]
    lost = {"duplicates": made["duplicates"], "surplus": made["surplus"]}
    written = FunnelStep("instructions written", made["new"] + sum(lost.values()))
    steps = [written, FunnelStep("new ones", made["new"], _nonzero(lost))]
    for step in [*_later(ledger, status), FunnelStep("in the data set", status["kept"])]:
        left = steps[-1].count - step.count - sum(step.lost.values())
        steps.append(FunnelStep(step.name, step.count, _nonzero(step.lost), left))
    return steps


def _later(ledger: Ledger, status: Mapping[str, Any]) -> Iterator[FunnelStep]:
    final = str(ledger.meta("final_stage") or "response_improvement")
    early = set()
    if status["filters"]:  # filters of instructions dropped some before a response was asked for
        early = {name for (name,) in ledger.db.execute(_EARLY, (final,))}
    yield from (_kept_by(counts) for counts in status["filters"] if counts["filter"] in early)
    for name, stage in (("answered", _PLAIN), ("improved", final)):
        if name == "improved" and final == _PLAIN:
            continue
        (count,) = ledger.db.execute(_ANSWERED, (stage,)).fetchone()
        failed = {f"failed: {kind}": number for kind, number in ledger.db.execute(_FAILED, (stage == _PLAIN,))}
        yield FunnelStep(name, count, failed)
    yield from (_kept_by(counts) for counts in status["filters"] if counts["filter"] not in early)


def _kept_by(counts: Mapping[str, Any]) -> FunnelStep:
    """A filter's step, from its entry in the status."""
    return FunnelStep(f"kept by {counts['filter']}", counts["kept"], counts["reasons"])


def _nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count > 0}
