"""What the filters of a run decided so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import DecisionRow

_OF_FILTER = """
SELECT filter, position, kept, score, reason, detail FROM decisions WHERE filter = ? ORDER BY created, instruction
"""
# With min(), SQLite takes the other columns from the row that has the least: the drop, where there was one.
_LAST = """
WITH last AS (
  SELECT min(kept) AS kept, filter, reason, created FROM decisions WHERE filter IN ({}) GROUP BY instruction
)
"""
_ROWS = """
SELECT i.id, intact(i.sum, i.text, i.feature), intact(i.sample_sum, i.sample), r.id,
       i.feature, i.round, d.filter, d.reason, d.score, d.detail
FROM decisions d
JOIN instructions i ON i.id = d.instruction
JOIN refs r ON r.position = i.reference
WHERE d.kept = :kept AND (d.filter = :label OR :label IS NULL) ORDER BY d.created, i.id
"""


def decisions_of(ledger: Ledger, label: str) -> Iterator[DecisionRow]:
    """The decisions of the filter called `label`, oldest first."""
    return map(_row, ledger.db.execute(_OF_FILTER, (label,)))


class Decided(NamedTuple):
    """What filters decided on rows in the end. `dropped`: (filter, reason) → the drops after the last kept row;
    `before`: all rows up to that one, and those of them that were `kept`."""

    before: int
    kept: int
    dropped: Counter[tuple[str, str]]


def decided_so_far(ledger: Ledger, labels: Sequence[str]) -> Decided:
    """What the filters called `labels` decided on all rows."""
    last = _LAST.format(",".join("?" * len(labels)))
    query = f"{last} SELECT count(*), total(kept), coalesce(max(CASE WHEN kept THEN created END), -1) FROM last"
    rows, kept, moment = ledger.db.execute(query, labels).fetchone()
    since = f"{last} SELECT filter, reason, count(*) FROM last WHERE NOT kept AND created > ? GROUP BY 1, 2"
    found = ledger.db.execute(since, [*labels, moment]) if rows > kept else ()
    dropped = Counter({(name, reason): count for name, reason, count in found})
    return Decided(rows - dropped.total(), int(kept), dropped)


def decided_rows(ledger: Ledger, kept: bool, label: str | None) -> Iterator[tuple[Any, ...]]:
    """The rows that the filter called `label`, or any filter, kept or dropped, oldest decision first.

    Each is (instruction's number, its text, its sample as JSON or None, reference's id, feature, round, filter, reason,
    score, detail).
    """
    return ledger.db.execute(_ROWS, {"kept": kept, "label": label})


def _row(record: tuple[Any, ...]) -> DecisionRow:
    label, position, kept, *why = record
    return DecisionRow(label, position, bool(kept), *why)
