"""Instructions that need a text which is not there."""

from __future__ import annotations

from refed_dspy.text import find_placeholder


def missing_text(instruction: str) -> str:
    """The words that announce a text which does not follow, on one line; empty where nothing is surely missing."""
    return find_placeholder(instruction)
