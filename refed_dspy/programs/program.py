"""What all programs of this package have in common."""

from __future__ import annotations

from typing import Any

import dspy

from refed_dspy.concurrency import run_blocking


class Program(dspy.Module):
    """A module that does its work in `aforward`, and that ordinary code can call as well."""

    def forward(self, *inputs: Any, **named: Any) -> dspy.Prediction:
        """`aforward` from ordinary code, and from notebooks, whose event loop is running."""
        return run_blocking(self.aforward(*inputs, **named))
