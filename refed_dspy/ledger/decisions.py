"""What the filters of a run decided so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import DecisionRow

_OF_FILTER = """
SELECT filter, position, kept, score, reason, detail FROM decisions WHERE filter = ? ORDER BY created, instruction
"""
# With min(), SQLite takes the other columns from the row that has the least: the drop, where there was one.
_LAST = """
SELECT filter, position, min(kept), score, reason, detail FROM decisions WHERE filter IN ({})
GROUP BY instruction ORDER BY created, instruction
"""
_ROWS = """
SELECT i.id, i.text, i.sample, r.id, i.feature, i.round, d.filter, d.reason, d.score, d.detail
FROM decisions d
JOIN instructions i ON i.id = d.instruction
JOIN refs r ON r.position = i.reference
WHERE d.kept = :kept AND (d.filter = :label OR :label IS NULL) ORDER BY d.created, i.id
"""


def decisions_of(ledger: Ledger, label: str) -> Iterator[DecisionRow]:
    """The decisions of the filter called `label`, oldest first."""
    return map(_row, ledger.db.execute(_OF_FILTER, (label,)))


def last_decisions(ledger: Ledger, labels: Sequence[str]) -> Iterator[DecisionRow]:
    """What the filters called `labels` decided on each row in the end, oldest first: the drop where there was one."""
    return map(_row, ledger.db.execute(_LAST.format(",".join("?" * len(labels))), labels))


def decided_rows(ledger: Ledger, kept: bool, label: str | None) -> Iterator[tuple[Any, ...]]:
    """The rows that the filter called `label`, or any filter, kept or dropped, oldest decision first.

    Each is (instruction's number, its text, its sample as JSON or None, reference's id, feature, round, filter, reason,
    score, detail).
    """
    return ledger.db.execute(_ROWS, {"kept": kept, "label": label})


def _row(record: tuple[Any, ...]) -> DecisionRow:
    label, position, kept, *why = record
    return DecisionRow(label, position, bool(kept), *why)
