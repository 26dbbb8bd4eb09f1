"""The digest of what a ledger says of its rows: whoever has a ledger and a data set can see whether they belong
together."""

from __future__ import annotations

import hashlib
import json

from refed_dspy.ledger.connection import reading
from refed_dspy.ledger.ledger import Ledger

_READ = {
    "refs": "SELECT position, id, record FROM refs ORDER BY position",
    "answers": "SELECT key, stage, item, repetition, output, raw, endpoint FROM answers ORDER BY key",
    "reasoning": "SELECT key, text FROM reasoning ORDER BY key",
    "shared": "SELECT item, stage, key FROM shared ORDER BY item, stage, key",
    "reused": "SELECT key, model FROM reused ORDER BY key",
    "calls": "SELECT id, key, stage, item, model, endpoint, outcome, prompt_tokens, cached_tokens, completion_tokens,"
    " reasoning_tokens, cost FROM calls ORDER BY id",
    "instructions": "SELECT id, reference, feature, round, text, used, sample FROM instructions ORDER BY id",
    "samples": "SELECT seq, instruction FROM samples ORDER BY seq",
    "decisions": "SELECT instruction, filter, position, kept, score, reason, detail FROM decisions"
    " ORDER BY instruction, filter",
}
"""Table → what of it is read, in an order that does not depend on where SQLite put the rows. Left out are settings,
times and failures, which change where a finished run is resumed, and what is made of other tables (sums, `usage`)."""
_as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def ledger_digest(ledger: Ledger) -> str:
    """The SHA-256, as 64 hex digits, of a JSON line for each table's name and each row of it, as one moment has them.

    It stays the same while nothing is asked, answered, made or decided: over a `VACUUM`, a copy, a newer format of the
    file, a resumption with nothing left to do. Raises RunDirError where the ledger is damaged.
    """
    found = hashlib.sha256()
    with reading(ledger.path):
        ledger.db.execute("SAVEPOINT digest")  # one snapshot: another process may be writing
        try:
            for table, query in _READ.items():
                found.update(f"{_as_json([table])}\n".encode())
                for row in ledger.db.execute(query):
                    found.update(f"{_as_json(row)}\n".encode())
        finally:
            ledger.db.execute("RELEASE digest")
    return found.hexdigest()
