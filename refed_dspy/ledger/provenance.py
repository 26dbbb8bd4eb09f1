"""Who wrote what in a run, and what each model took: read off its calls."""

from __future__ import annotations

from typing import Any

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.records import PICO

EMBEDDED = "embedded:"
"""What the endpoint of a model begins with that ran beside its run; its name follows."""
_MODELS = """
SELECT model, endpoint, count(*), total(prompt_tokens), total(cached_tokens), total(completion_tokens),
       sum(prompt_tokens IS NULL AND outcome NOT LIKE 'http 4%' AND outcome NOT LIKE 'http 5%' AND outcome != 'sent'),
       total(cost), sum(cost IS NULL)
FROM calls GROUP BY model, endpoint ORDER BY min(id)
"""
_WORDS = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "unknown", "cost", "unpriced")


def model_of(model: str, endpoint: str) -> str:
    """A call's model by its name: calls of one that ran beside the run are noted as its settings name it."""
    return endpoint.removeprefix(EMBEDDED) if endpoint.startswith(EMBEDDED) else model


def usage_by_model(ledger: Ledger) -> list[dict[str, Any]]:
    """A `model` at an `endpoint` each: calls and what they took, as `engine.summary.usage_by_stage` counts them."""
    told = []
    for model, endpoint, *numbers in ledger.db.execute(_MODELS):
        use: dict[str, Any] = dict(zip(_WORDS, map(int, numbers), strict=True))
        use["cost"] = None if use["unpriced"] and not use["cost"] else use["cost"] / PICO
        told.append({"model": model_of(model, endpoint), "endpoint": endpoint, **use})
    return told


class Authors:
    """Which model wrote an answer of a run: the one teacher of most runs, or the one whose call it was."""

    def __init__(self, ledger: Ledger) -> None:
        self._db = ledger.db
        several = ledger.meta("pools") is not None or len(ledger.meta("asked_teachers") or ()) > 1
        self._only = None if several else str((ledger.meta("teacher") or {}).get("model", ""))

    def model(self, key: str | None, item: str | None, endpoint: str | None) -> str | None:
        """Of the answer under `key`; None where it is not known."""
        if self._only is not None or key is None or endpoint is None:
            return self._only
        call = "SELECT model FROM calls WHERE item=? AND key=? AND outcome='ok' LIMIT 1"
        found = self._db.execute(call, (item, key)).fetchone()
        if found is None:
            found = self._db.execute("SELECT model FROM reused WHERE key=?", (key,)).fetchone()
        return None if found is None else model_of(str(found[0]), endpoint)
