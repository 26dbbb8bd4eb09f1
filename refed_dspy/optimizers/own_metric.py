"""A metric of the caller's own, whatever arguments it takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy

from refed_dspy.optimizers.scoring import Evaluation
from refed_dspy.programs.saved import digest


@dataclass(frozen=True)
class Own:
    """Any function that a DSPy optimizer would take: of (example, prediction), with a trace, or with GEPA's five."""

    function: Callable[..., Any]
    accept: float = 0.5

    def identity(self) -> dict[str, Any]:
        return {"metric": name_of(self.function)}

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> Evaluation:
        """What the function returns: a number, a bool, or an object with a `score`.

        Raises ValueError for a score that is no finite number.
        """
        return Evaluation(_number(self._asked(example, prediction, trace, None, None)))

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:
        """Its `feedback`, if it gives any when it is told of the stage, as GEPA does."""
        said = self._asked(example, prediction, None, stage, trace)
        return str(getattr(said, "feedback", None) or f"The program scored {_number(said):.2f} here.")

    def _asked(self, *arguments: Any) -> Any:
        """Call the function with as many of the five arguments as it takes: five, three or two."""
        for count in (5, 3):
            if _takes(self.function, count):
                return self.function(*arguments[:count])
        return self.function(*arguments[:2])


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):  # ValueError: a built-in without a signature
        return False
    return True


def _number(said: Any) -> float:
    score = float(getattr(said, "score", said))
    if not math.isfinite(score):
        raise ValueError(f"the metric returned {score}, which is no finite number")
    return score


def name_of(function: Callable[..., Any]) -> str:
    """A function's module and name, and a digest of its text: one that was changed is another."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(kind, '__module__', '')}.{kind.__qualname__}{source_of(kind)}"


def source_of(thing: Any) -> str:
    """A digest of a function's or class's text, behind a space; nothing where there is no text to be had."""
    try:
        return f" {digest(inspect.getsource(thing))}"
    except (OSError, TypeError):
        return ""
