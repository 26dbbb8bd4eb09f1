"""What work a folder holds, in words, and what differs between two starts of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refed_dspy.ledger.batches import unsettled_calls
from refed_dspy.ledger.ledger import Ledger


def named_work(work: str) -> str:
    """The kind of work in a folder (`Ledger.holds`) with its article: "a run", "an agreement"."""
    if work in {"statistics", "answers"}:
        return work
    return f"an {work}" if work[:1] in "aeio" else f"a {work}"


def differences(stored: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences between two nested mappings, as one text each: "seed was 1, is 2"."""
    texts = []
    for key in sorted({*stored, *current}):
        old, new = _by_name(stored.get(key)), _by_name(current.get(key))
        if old == new and stored.get(key) != current.get(key):  # mappings are equal in any order
            texts.append(f"{prefix}{key} were in another order")
        elif isinstance(old, dict) and isinstance(new, dict):
            texts += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            texts.append(f"{prefix}{key} was {old}, is {new}")
    return texts


def _by_name(value: Any) -> Any:
    """A list of names with their settings, as filters are stored, as a mapping; any other value as it is."""
    if not isinstance(value, list) or not all(isinstance(each, list) and len(each) == 2 for each in value):
        return value
    return {str(name): settings for name, settings in value}


def has_begun(ledger: Ledger) -> bool:
    """Whether there are paid answers or calls in batches: a later start could use them, so it must be the same work."""
    return ledger.has_answers() or bool(unsettled_calls(ledger))
