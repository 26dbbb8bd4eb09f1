"""What every metric of a compile gives: one score, its parts, and words for whoever improves the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import dspy

from refed_dspy.errors import RefedError


class NotScored(RefedError):
    """There is nothing to judge this evaluation by: the judge abstained on all of it, or no model answered.

    It is recorded without a score, so that it counts neither for nor against the candidate.
    """


@dataclass(frozen=True)
class Evaluation:
    """A program's score on one example, 0 to 1, and the parts that it is made of."""

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Metric(Protocol):
    """What a compile needs of a metric. Both are called from threads, without an event loop."""

    @property
    def accept(self) -> float:
        """From this score on a rollout is good enough to become a demonstration."""
        ...

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> Evaluation:
        """`trace` is given while bootstrapping. Raises NotScored where nothing can be said."""
        ...

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:
        """Words for whoever rewrites the prompt of `stage`; `trace` holds the call of it that is looked at."""
        ...

    def identity(self) -> dict[str, Any]:
        """What its scores depend on, beyond the judge."""
        ...


class Scored(dspy.Prediction):
    """A score as DSPy's optimizers want one: a number where they add, true or false where they bootstrap, and an
    object with `score` and `feedback` where they reflect."""

    def __init__(self, score: float, feedback: str, accept: float) -> None:
        super().__init__(score=score, feedback=feedback)
        object.__setattr__(self, "_accept", accept)

    def __bool__(self) -> bool:
        return bool(float(self) >= self._accept)
