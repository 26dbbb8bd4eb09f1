"""The interface of a compile's metrics, and two of them: agreement with people, and a caller's own function."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from traceback import extract_tb
from typing import Any, Protocol

import dspy
from dspy.utils.exceptions import AdapterParseError, LMError

from refed_dspy.config.named import METRICS, code_of, made, raised, resolve
from refed_dspy.errors import OUT, CapReached, ConfigError, RefedError, RowError, RunStopped, one_line
from refed_dspy.optimizers.by_people import JudgedPair
from refed_dspy.programs.lm_errors import row_error_of
from refed_dspy.records import Compared, Reference

_ROUNDING = 1e-6
"""So far outside 0 to 1 a score may be: a cosine in 32 bits is 1.0000001 at times."""
_REPAIR = "repair it; a compile by a repaired metric needs a folder of its own (" + OUT + ")"


class NotScored(RefedError):
    """This evaluation cannot be scored: of what is weighed the judge decided nothing, or no model answered.

    It is recorded without a score, so it counts neither for nor against the candidate.
    """


@dataclass(frozen=True)
class ExampleScore:
    """A program's score on one example, 0 to 1, and the components that it is made of.

    `compared`: the verdicts behind it, with the answers' lengths; None where no answers were compared. What length took
    from the score is its component `length_cost`.
    """

    score: float
    components: Mapping[str, float] = field(default_factory=dict)
    compared: Compared | None = None
    objectives: Mapping[str, float] = field(default_factory=dict)
    """Those of which more is better: GEPA gets them as `objective_scores`."""
    pairs: Sequence[JudgedPair] = ()
    """The answers that were compared, for people to be asked about."""


class Metric(Protocol):
    """What a compile needs of a metric. Its methods are called from threads without an event loop."""

    @property
    def accept(self) -> float:
        """The lowest score at which a rollout may become a demonstration."""
        ...

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> ExampleScore:
        """The score of `prediction`; `trace` is set while bootstrapping. Raises NotScored if there is none."""
        ...

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:
        """Feedback for the model that rewrites the prompt of `stage`; `trace` holds the call of it that is examined."""
        ...


class MetricScore(dspy.Prediction):
    """A score as DSPy's optimizers use it: a number where they add, a bool where they bootstrap, and an object with
    `score`, `feedback` and, where the metric has parts, `objective_scores` where they reflect."""

    evaluation: ExampleScore | None = None
    """What it is made of; None where the example could not be scored, and it is but a stand-in."""

    def __init__(self, score: float, feedback: str, accept: float) -> None:
        super().__init__(score=score, feedback=feedback)
        object.__setattr__(self, "_accept", accept)

    @classmethod
    def of(cls, evaluation: ExampleScore, feedback: str, accept: float) -> MetricScore:
        """The score of `evaluation`."""
        made = cls(evaluation.score, feedback, accept)
        if evaluation.objectives:
            made.objective_scores = dict(evaluation.objectives)
        object.__setattr__(made, "evaluation", evaluation)
        return made

    def __bool__(self) -> bool:
        return bool(float(self) >= self._accept)


def is_programs_fault(error: BaseException) -> bool:
    """Whether a failed prediction is the program's fault: its answer does not fit, was cut, or was refused."""
    failure = error if isinstance(error, RowError) else row_error_of(error)
    return failure is not None and failure.final


def is_recoverable(error: BaseException) -> bool:
    """Whether an evaluation goes on after `error`: a failed row, an example without a score, or an error that a
    gateway has handled.

    Any other error is a bug, or a model that would fail every other question too.
    """
    return isinstance(error, RowError | CapReached | NotScored | LMError | AdapterParseError)


_WINNER = {1.0: "answer A", 0.0: "neither: a tie", -1.0: "answer B"}


class HumanAgreement:
    """Agreement of a pairwise judge with people: 1 for the same verdict, ½ if only one of the two is a tie, else 0.

    The examples hold people's verdict as `people`: 1 (A), 0 (a tie) or -1 (B).
    """

    accept = 1.0

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> ExampleScore:  # noqa: ARG002
        """Raises NotScored where the judge abstained."""
        if prediction.preference is None:
            failed = prediction.get("failed")
            raise NotScored(f"the judge failed: {failed}" if failed else f"the judge abstained: {prediction.abstained}")
        verdict = (prediction.preference > 0) - (prediction.preference < 0)
        return ExampleScore(1 - abs(verdict - example.people) / 2, {"consistent": float(prediction.consistent)})

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:  # noqa: ARG002
        """What people preferred, and whether the judge's verdict stayed the same when the answers were swapped."""
        lines = [f"People preferred {_WINNER[float(example.people)]}."]
        inputs = trace[0][1] if trace else {}
        if inputs.get("answer_a") == example.answer_b:
            lines.append("(In this call A and B stood the other way round.)")
        if prediction.consistent is False:
            lines.append("The judge's verdict changed with the order of the answers; order must not matter.")
        lines += [f"The judge's reason: {reason}" for reason in prediction.reasons]
        return "\n".join(lines)


@dataclass(frozen=True)
class CustomMetric:
    """The caller's function, in any form that DSPy takes: of (example, prediction), with a trace, or GEPA's five."""

    function: Callable[..., Any]
    accept: float = 0.5

    def identity(self) -> dict[str, Any]:
        return {"function": name_of(self.function), "accept": self.accept}

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> ExampleScore:
        """The score that the function returns: a number from 0 to 1, a bool, or an object with a `score`, and perhaps
        `objective_scores`.

        Raises RunStopped where it raises, or returns anything else.
        """
        result, score = self._call(example, prediction, trace, None, None)
        parts = {str(name): float(part) for name, part in (getattr(result, "objective_scores", None) or {}).items()}
        return ExampleScore(score, parts, objectives=parts)

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:
        """The `feedback` that the function returns when called as GEPA calls it; else its score in words. Raises as
        `score`."""
        result, score = self._call(example, prediction, None, stage, trace)
        return str(getattr(result, "feedback", None) or f"The program scored {score:.2f} here.")

    def _call(self, example: dspy.Example, *others: Any) -> tuple[Any, float]:
        """What the function returns, and the score in it. It gets as many of the five arguments as it takes: five,
        three or two."""
        count = next((count for count in (5, 3) if _takes(self.function, count)), 2)
        try:
            result = self.function(*(example, *others)[:count])
        except (RefedError, LMError):  # from a program or a model that the metric asked
            raise
        except Exception as error:
            frames = extract_tb(error.__traceback__)[1:2]
            line = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in frames)
            raise RunStopped(f"{self._where(example)}: {raised(error)}{line}; " + _REPAIR) from error
        if (score := _number(getattr(result, "score", result))) is None:
            raise RunStopped(
                f"{self._where(example)}: it returned {one_line(repr(result), 60)}; it must return a number from 0 to "
                f"1, a bool, or an object with one as its score; " + _REPAIR
            )
        return result, score

    def _where(self, example: dspy.Example) -> str:
        reference = example.get("reference")
        item = f"reference {reference.id}" if isinstance(reference, Reference) else dict(example.inputs())
        return f"metric {self.name} on {one_line(item, 100)}"

    @property
    def name(self) -> str:
        """The function's name, for people."""
        return name_of(self.function).partition(" ")[0]


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):  # ValueError: a built-in without a signature
        return False
    return True


def _number(score: Any) -> float | None:
    """A score from 0 to 1, or None. A failed prediction scores 0, so below that whoever fails would gain."""
    try:
        number = math.nan if isinstance(score, str) else float(score)
    except (TypeError, ValueError):
        return None
    return min(1.0, max(0.0, number)) if -_ROUNDING <= number <= 1 + _ROUNDING else None


def named_metric(name: str) -> Callable[..., Any]:
    """The caller's own metric of this name: a function, or an object of the class. Raises ConfigError."""
    own = resolve(name, METRICS, "metric:")
    if isinstance(own, type):
        own = made(own, f"metric: {name}")
    if not callable(own):
        raise ConfigError(f"metric: {one_line(name, 80)} is of type {type(own).__name__}; it must be a function")
    function: Callable[..., Any] = own
    return function


def name_of(function: Callable[..., Any]) -> str:
    """A function's module and name, and a digest of its code: a changed function has another name."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(kind, '__module__', '')}.{kind.__qualname__} {code_of(kind)}".rstrip()
