"""Which model wrote what in a run, read from the ledger's calls."""

from __future__ import annotations

from collections.abc import Collection

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import only_teacher

EMBEDDED = "embedded:"
"""Prefix of the endpoint of a model that the run started itself; the model's name follows."""
SIMULATED = "simulated"
"""The endpoint of the simulated teacher."""

_ENDPOINTS = """
SELECT endpoint FROM usage WHERE answered UNION SELECT endpoint FROM reused JOIN answers USING (key)
"""


def model_of(model: str, endpoint: str) -> str:
    """The name of a call's model; of one that the run started itself, its name in the run's settings."""
    return endpoint.removeprefix(EMBEDDED) if endpoint.startswith(EMBEDDED) else model


def simulated_note(ledger: Ledger) -> str:
    """What people must know of texts by the simulated teacher; empty where a model gave every answer."""
    by = {endpoint == SIMULATED for (endpoint,) in ledger.db.execute(_ENDPOINTS)}
    return simulated_text(by, "rows" if ledger.holds() in {"", "run", "comparison", "recycling"} else "answers")


def simulated_text(by: Collection[bool], texts: str = "rows") -> str:
    """The note of `texts`. `by`: whether the simulated teacher wrote each, or each kind of them."""
    if True not in by:
        return ""
    whole = f"made by the simulated teacher: no model wrote these {texts}"
    return f"{'made in part by the simulated teacher' if False in by else whole}, for trying refed out only"


class Authors:
    """Which model wrote an answer of a run: the only teacher of most runs, or the one that the call was made to."""

    def __init__(self, ledger: Ledger) -> None:
        self._db = ledger.db
        self._only = only_teacher(ledger)

    def model(self, key: str | None, endpoint: str | None) -> str | None:
        """The model that wrote the answer under `key`; None where it is not known."""
        if self._only is not None or key is None or endpoint is None:
            return self._only
        row = self._db.execute("SELECT model FROM calls WHERE key=? AND outcome='ok' LIMIT 1", (key,)).fetchone()
        if row is None:
            row = self._db.execute("SELECT model FROM reused WHERE key=?", (key,)).fetchone()
        return None if row is None else model_of(str(row[0]), endpoint)
