"""How far a compile has come, for a display."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CompileProgress:
    """How far a compile has come. `baseline` and `best` are mean scores on the validation set."""

    phase: str = "starting"
    evaluations: int = 0
    expected: int = 0
    candidates: int = 0
    baseline: float | None = None
    best: float | None = None
    cost: int = 0
    calls: int = 0
