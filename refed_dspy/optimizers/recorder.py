"""Who watches an optimizer at work: which candidate runs, what it scores, and whether something is broken.

DSPy's own optimizers call a metric and know nothing of ledgers. They get a `Recorder` for a metric, and a callback that
DSPy tells of every program that starts. Both work whatever the optimizer is.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError, LMError

from refed_dspy.errors import CapReached, RowError, one_line
from refed_dspy.ledger.candidates import abstained, scored, trials, tried
from refed_dspy.optimizers.examples import Split, example_id
from refed_dspy.optimizers.gateway import Gateway, evaluating, judging
from refed_dspy.optimizers.journal import final_kind
from refed_dspy.optimizers.metrics import Metric, MetricScore, NotScored
from refed_dspy.programs.saved import program_digests, program_state
from refed_dspy.records import Failure, digest


def candidate_id(program: dspy.Module) -> str:
    """Sixteen hex digits of a program's prompts."""
    return digest(program_digests(program))


class Candidates(BaseCallback):
    """Told by DSPy of every module that starts: a program of the student's kind is a candidate.

    What runs in the same context afterwards, its calls and its metric, is done for that candidate.
    """

    def __init__(self, gateway: Gateway, student: dspy.Module, parts: Split = Split((), (), ())) -> None:  # noqa: B008
        self._example_of = {
            digest(dict(each.inputs())): example_id(each) for each in (*parts.train, *parts.validation, *parts.test)
        }
        self._subset_of = parts.subsets()
        self._gateway, self._kind = gateway, type(student)
        self._shape = _shape(student)
        # A later start counts on from the candidates of the earlier ones.
        self._seen = {trial.digest: trial.seq for trial in gateway.read(trials)}
        self._running: dict[str, tuple[str, str | None]] = {}
        self._lock = threading.Lock()

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if self._is_candidate(instance):
            candidate = self.note(instance)
            self._running[call_id] = candidate, self._example_of.get(digest(inputs.get("kwargs", inputs)))
            evaluating.set(candidate)

    def on_module_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:  # noqa: ARG002
        candidate, example = self._running.pop(call_id, ("", None))
        if not candidate or exception is None:
            return
        if not bearable(exception):
            self._gateway.stop(exception)
        elif example is not None and _own_fault(exception):
            spent = self._gateway.recorder.budget.spent
            subset = self._subset_of[example]
            self._gateway.write(scored(candidate, example, subset, 0.0, {"failed": 1.0}, spent))

    def note(self, program: dspy.Module) -> str:
        """Write the candidate down when it is new. Returns its id."""
        name = candidate_id(program)
        with self._lock:
            if name in self._seen:
                return name
            seq = self._seen[name] = len(self._seen)
        self._gateway.write(tried(name, seq, program_state(program)))
        return name

    def _is_candidate(self, instance: Any) -> bool:
        if judging.get() or type(instance) is not self._kind:
            return False
        return _shape(instance) == self._shape


class ScoreRecorder:
    """The metric as DSPy's optimizers call it: with two to five arguments, from any thread."""

    def __init__(
        self,
        metric: Metric,
        gateway: Gateway,
        subset_of: Mapping[str, str],
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self.metric, self._gateway, self._subset_of, self._watch = metric, gateway, subset_of, watch
        self.evaluations = 0
        """How often a candidate was scored, in this process."""
        self.neutral = 0.5
        """What an optimizer is told of an evaluation that nothing could be said of."""
        self.failures: Counter[str] = Counter()
        """What rows of predictions failed with: "cut in response_improvement" → how many."""

    def __call__(
        self,
        gold: dspy.Example,
        pred: Any,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> MetricScore:
        """`trace` is what bootstrapping passes, and reads the score as a bool; `pred_name` and `pred_trace` are GEPA's,
        which reads `feedback`."""
        token = judging.set(True)
        try:
            return self._scored(gold, pred, trace, pred_name, pred_trace)
        except Exception as error:
            if not bearable(error):
                self._gateway.stop(error)
            raise
        finally:
            judging.reset(token)

    def _scored(self, gold: dspy.Example, pred: Any, trace: Any, pred_name: str | None, pred_trace: Any) -> MetricScore:
        if pred is None:
            raise NotScored("the program failed")
        if pred_name is None:
            self.failures.update(f"{failure.kind} in {failure.stage}" for failure in failures_of(pred))
        example = example_id(gold)
        candidate, subset = evaluating.get(), self._subset_of.get(example, "other")
        try:
            said = self.metric.score(gold, pred, trace)
        except NotScored as nothing:
            # Recorded without a score. What the optimizer gets instead of a number is the uncompiled program's, so that
            # the abstention counts neither for nor against the candidate; a demonstration it cannot become.
            if pred_name is None:
                self._gateway.write(abstained(candidate, example, subset, one_line(nothing)))
            return MetricScore(self.neutral, one_line(f"It could not be judged: {nothing}"), math.inf)
        if pred_name is not None:
            return MetricScore(said.score, self.metric.feedback(gold, pred, pred_name, pred_trace), self.metric.accept)
        spent = self._gateway.recorder.budget.spent
        self._gateway.write(scored(candidate, example, subset, said.score, said.parts, spent))
        self.evaluations += 1
        self._watch()
        return MetricScore(said.score, f"scored {said.score:.2f}", self.metric.accept)


def _shape(program: dspy.Module) -> list[tuple[str, tuple[str, ...]]]:
    """Predictors and their fields: an optimizer's own helpers may be of the student's class, but not of its shape."""
    return [(name, tuple(predictor.signature.fields)) for name, predictor in program.named_predictors()]


def failures_of(prediction: Any) -> list[Failure]:
    """The rows that failed on the way to a prediction; none for programs that keep no such list."""
    found = prediction.get("failures") if isinstance(prediction, dspy.Prediction) else None
    return [each for each in found if isinstance(each, Failure)] if isinstance(found, list) else []


def _own_fault(error: BaseException) -> bool:
    """Whether a failed prediction is the program's own doing: what it got does not fit, was cut, or was declined."""
    if isinstance(error, RowError):
        return error.final
    return isinstance(error, AdapterParseError) or bool(final_kind(error))


def bearable(error: BaseException) -> bool:
    """Whether a compile goes on after it: one row's bad luck, nothing to judge by, or what the gateway saw.

    What else goes wrong is a bug, or a model that no other question would fare better with.
    """
    return isinstance(error, RowError | CapReached | NotScored | LMError | AdapterParseError)
