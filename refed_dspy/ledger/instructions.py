"""The instructions of a run and their references: which were asked about, answered, kept."""

from __future__ import annotations

from refed_dspy.ledger.ledger import Ledger


def kept_instructions(ledger: Ledger) -> list[tuple[int, int, str, str]]:
    """(id, reference, feature, text) of every sample's instruction, in the order of the samples."""
    return ledger.db.execute(
        "SELECT i.id, i.reference, i.feature, intact(i.sum, i.text, i.feature)"
        " FROM samples s JOIN instructions i ON i.id = s.instruction ORDER BY s.seq"
    ).fetchall()


def tried_in_vain(ledger: Ledger) -> list[tuple[int, int, str]]:
    """(id, reference, text) of every instruction that calls were made about and that gave no sample."""
    return ledger.db.execute(
        "SELECT id, reference, intact(sum, text, feature) FROM instructions i"
        " WHERE NOT EXISTS (SELECT 1 FROM samples WHERE instruction = i.id)"
        " AND EXISTS (SELECT 1 FROM calls WHERE item = CAST(i.id AS TEXT)) ORDER BY id"
    ).fetchall()


def opened_references(ledger: Ledger) -> list[int]:
    """The references that calls were made about, in their order."""
    rows = ledger.db.execute(
        "SELECT position FROM refs r WHERE EXISTS (SELECT 1 FROM calls WHERE item = r.id) ORDER BY position"
    )
    return [position for (position,) in rows]
