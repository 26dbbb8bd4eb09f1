"""What every metric of a compile gives: one score, its parts, and words for whoever improves the prompts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import dspy

from refed_dspy.errors import RefedError
from refed_dspy.records import digest


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


class MetricScore(dspy.Prediction):
    """A score as DSPy's optimizers want one: a number where they add, true or false where they bootstrap, and an
    object with `score` and `feedback` where they reflect."""

    def __init__(self, score: float, feedback: str, accept: float) -> None:
        super().__init__(score=score, feedback=feedback)
        object.__setattr__(self, "_accept", accept)

    def __bool__(self) -> bool:
        return bool(float(self) >= self._accept)


_WORDS = {1.0: "answer A", 0.0: "neither: a tie", -1.0: "answer B"}


class HumanAgreement:
    """How near a pairwise judge comes to people: 1 for the same verdict, ½ where one of both sees a tie, else 0.

    Its examples hold people's verdict as `people`: 1 (A), 0 (a tie) or -1 (B).
    """

    accept = 1.0

    def identity(self) -> dict[str, Any]:
        return {"metric": "people's verdict"}

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> Evaluation:  # noqa: ARG002
        """Raises NotScored where the judge abstained."""
        if prediction.preference is None:
            raise NotScored(f"the judge abstained: {prediction.abstained}")
        said = (prediction.preference > 0) - (prediction.preference < 0)
        return Evaluation(1 - abs(said - example.people) / 2, {"consistent": float(prediction.consistent)})

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:  # noqa: ARG002
        """What people said, and whether the judge kept to its verdict when the answers changed places."""
        lines = [f"People preferred {_WORDS[float(example.people)]}."]
        inputs = trace[0][1] if trace else {}
        if inputs.get("answer_a") == example.answer_b:
            lines.append("(In this call A and B stood the other way round.)")
        if prediction.consistent is False:
            lines.append("The judge's verdict changed with the order of the answers; order must not matter.")
        lines += [f"The judge's reason: {reason}" for reason in prediction.reasons]
        return "\n".join(lines)


@dataclass(frozen=True)
class CustomMetric:
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
