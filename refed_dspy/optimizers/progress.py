"""Where a compile stands, for whoever watches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CompileProgress:
    """Where a compile stands, for whoever watches."""

    phase: str = "starting"
    evaluations: int = 0
    expected: int = 0
    candidates: int = 0
    baseline: float | None = None
    best: float | None = None
    """On the validation set."""
    cost: int = 0
    calls: int = 0
