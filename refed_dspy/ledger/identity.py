"""What a folder was made for, and what of it may not change between two starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refed_dspy.errors import RunDirError
from refed_dspy.ledger.batches import held
from refed_dspy.ledger.ledger import Ledger


def refuse_other_work(ledger: Ledger, work: str) -> None:
    """Raises RunDirError where the folder was made for anything else than `work`."""
    if (holds := ledger.holds()) not in {"", work}:
        raise RunDirError(f"{ledger.path.parent}: holds {named(holds)}, not {named(work)}; name another folder")


def named(work: str) -> str:
    """What a folder is for (`Ledger.holds`), as it stands in a sentence."""
    if work == "statistics":
        return work
    return f"an {work}" if work[:1] in "aeio" else f"a {work}"


def differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What is not the same, a text each."""
    found = []
    for key in sorted({*stored, *given}):
        old, new = stored.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old}, is {new}")
    return found


def has_begun(ledger: Ledger) -> bool:
    """Whether a later start could use what was paid for, or sent in a batch: then it must be the same work."""
    return ledger.has_answers() or bool(held(ledger))
