"""The differences between two programs' prompts, as text for people."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from refed_dspy.errors import one_line

SHOWN = 400
"""Characters of a demonstration that are shown."""


def prompt_diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The differences of two programs' states by predictor: a diff of the instructions, and demonstrations + and -."""
    blocks = []
    for name, old, new in _predictors_of_both(before, after):
        if lines := [*_lines(old, new), *_demos(old, new)]:
            blocks.append("\n".join([f"### {name}", *lines]))
    return "\n\n".join(blocks) + "\n" if blocks else "no prompts changed\n"


def changed_predictors(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The predictors whose instructions or demonstrations differ."""
    return [
        name
        for name, old, new in _predictors_of_both(before, after)
        if any(old.get(key) != new.get(key) for key in ("signature", "demos"))
    ]


def _predictors_of_both(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, old state and new state of each predictor in both states."""
    for name, new in after.items():
        if isinstance(old := before.get(name), dict) and isinstance(new, dict) and "signature" in new:
            yield name, old, new


def _lines(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = (str(state["signature"].get("instructions", "")).split("\n") for state in (old, new))
    diff = list(difflib.unified_diff(before, after, lineterm="", n=3))
    # The first two lines name files. A line of text begins with a space, + or -, so one with @@ is the diff's header.
    return [line for line in diff[2:] if not line.startswith("@@")]


def _demos(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    before, after = ([json.dumps(demo, ensure_ascii=False) for demo in state.get("demos", [])] for state in (old, new))
    removed = [f"- demonstration: {one_line(demo, SHOWN)}" for demo in before if demo not in after]
    return removed + [f"+ demonstration: {one_line(demo, SHOWN)}" for demo in after if demo not in before]
