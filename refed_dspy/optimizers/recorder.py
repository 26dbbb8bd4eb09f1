"""Records what an optimizer does: which candidates run, what they score, and which errors end the compile.

DSPy's optimizers call a metric and know nothing of ledgers. They get a `ScoreRecorder` as their metric, and DSPy calls
a `CandidateCallback` for every program that starts. Both work with any optimizer.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback

from refed_dspy.errors import CodeFailed, one_line
from refed_dspy.jobs.gateway import Gateway
from refed_dspy.ledger.candidates import candidate_seen, evaluation_abstained, evaluation_scored, load_candidates
from refed_dspy.optimizers.examples import Split, example_id
from refed_dspy.optimizers.gateway import current_candidate, in_metric
from refed_dspy.optimizers.metrics import Metric, MetricScore, NotScored, is_programs_fault, is_recoverable
from refed_dspy.programs.saved import program_digests, program_state
from refed_dspy.records import Failure, digest, json_default

log = logging.getLogger("refed_dspy.optimizers")
LEAST_PATIENCE = 5
"""So many times the validation set must have been scored without anything better."""


def candidate_id(program: dspy.Module) -> str:
    """Sixteen hex digits of a program's prompts."""
    return digest(program_digests(program))


class CandidateCallback(BaseCallback):
    """Records candidates. DSPy calls it for every module that starts: a program of the student's kind is a candidate.

    What runs in the same context afterwards, its calls and its metric, counts for that candidate.
    """

    def __init__(self, gateway: Gateway, student: dspy.Module, split: Split) -> None:
        self._examples = {
            digest(dict(each.inputs())): (example_id(each), name) for name, each in split.named_examples()
        }
        """Digest of its inputs → an example's id, and the name of its set."""
        self._gateway, self._kind = gateway, type(student)
        self._shape = _shape(student)
        # A later start continues the numbering of earlier starts.
        self._seen = {candidate.digest: candidate.seq for candidate in gateway.read(load_candidates)}
        self._running: dict[str, tuple[str, tuple[str, str] | None]] = {}
        self._lock = threading.Lock()

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if self._is_candidate(instance):
            candidate = self.note(instance)
            self._running[call_id] = candidate, self._examples.get(digest(inputs.get("kwargs", inputs)))
            current_candidate.set(candidate)

    def on_module_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:  # noqa: ARG002
        candidate, example = self._running.pop(call_id, ("", None))
        if not candidate or exception is None:
            return
        if not is_recoverable(exception):
            self._gateway.stop(exception)
        elif example is not None and is_programs_fault(exception):
            spent = self._gateway.recorder.budget.spent
            self._gateway.write(evaluation_scored(candidate, *example, 0.0, {"failed": 1.0}, spent))

    def note(self, program: dspy.Module) -> str:
        """Record the candidate if it is new. Returns its id."""
        name = candidate_id(program)
        with self._lock:
            if name in self._seen:
                return name
            seq = self._seen[name] = len(self._seen)
        self._gateway.write(candidate_seen(name, seq, program_state(program)))
        return name

    def _is_candidate(self, instance: Any) -> bool:
        if in_metric.get() or type(instance) is not self._kind:
            return False
        return _shape(instance) == self._shape


class TurnScores:
    """What an optimizer's turn has scored so far: `whole`, examples in the validation set; `size`, evaluations that it
    is set up for."""

    def __init__(self, whole: int, size: int = 0) -> None:
        self.candidates = set[str]()
        self._asked, self._scored = 0, set[tuple[str, str]]()
        self._whole, self._patience = whole, max(size // 2, LEAST_PATIENCE * whole)
        self._best, self._improved_at = -math.inf, 0
        self._validation = defaultdict[str, dict[str, float]](dict)
        self._lock = threading.Lock()

    def add(self, candidate: str, example: str, subset: str, score: float) -> None:
        """From any thread."""
        with self._lock:
            self._asked += 1
            self._scored.add((candidate, example))
            self.candidates.add(candidate)
            if subset != "validation":
                return
            scores = self._validation[candidate]
            scores[example] = score
            if len(scores) >= self._whole and (mean := fmean(scores.values())) > self._best + 1e-9:
                self._best, self._improved_at = mean, self._asked

    @property
    def evaluations(self) -> int:
        """How many there were. One that is asked for again counts once."""
        return len(self._scored)

    @property
    def rising(self) -> bool:
        """Whether a candidate was better than all before it in the second half of what was scored."""
        return len(self._validation) > 1 and self._improved_at > self._asked / 2

    @property
    def converged(self) -> bool:
        """Whether going on is not worth its cost: every validation score is 1, or for half of the turn, and for
        LEAST_PATIENCE times the validation set, no candidate was better than the best one before."""
        if self._best < 0:
            return False
        return self._best > 1 - 1e-9 or self._asked - self._improved_at >= self._patience


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
        self.turn = TurnScores(0)
        """What was scored since an optimizer's turn began."""
        self.uncompiled: Mapping[str, float] = {}
        """The uncompiled program's scores, by example. An optimizer gets them for evaluations that could not be scored,
        and their mean where the example has none."""
        self.unscored = ""
        """Why an evaluation could not be scored, of the last such one."""
        self.failures: Counter[str] = Counter()
        """Failures among the rows of predictions: "cut in response_improvement" → how many; of own code, its error."""
        self.code_failed = False
        """Whether any of them is of the caller's own code."""
        self._all = TurnScores(0)

    @property
    def evaluations(self) -> int:
        """How many evaluations this process has scored. One that an optimizer asks for again counts once."""
        return self._all.evaluations

    def __call__(
        self,
        gold: dspy.Example,
        pred: Any,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> MetricScore:
        """Score and record. Bootstrapping passes `trace` and reads the score as a bool; GEPA passes `pred_name` and
        `pred_trace` and reads `feedback`."""
        token = in_metric.set(True)
        try:
            score = self._scored(gold, pred, trace, pred_name, pred_trace)
            if isinstance(trace, list):
                trace[:] = map(_in_json, trace)
            return score
        except Exception as error:
            if not is_recoverable(error):
                self._gateway.stop(error)
            raise
        finally:
            in_metric.reset(token)

    def _scored(self, gold: dspy.Example, pred: Any, trace: Any, pred_name: str | None, pred_trace: Any) -> MetricScore:
        if pred is None:
            raise NotScored("the program failed")
        if pred_name is None:
            for failure in failures_of(pred):
                self._count(failure)
        example = example_id(gold)
        candidate, subset = current_candidate.get(), self._subset_of.get(example, "other")
        try:
            evaluation = self.metric.score(gold, pred, trace)
        except NotScored as not_scored:
            # Recorded without a score. The optimizer gets the uncompiled program's instead, so that the abstention
            # counts neither for nor against the candidate. It cannot become a demonstration.
            self.unscored = one_line(not_scored)
            if pred_name is None:
                self._gateway.write(evaluation_abstained(candidate, example, subset, self.unscored))
            neutral = self.uncompiled.get(example, fmean(self.uncompiled.values() or [0.5]))
            return MetricScore(neutral, one_line(f"It could not be judged: {not_scored}"), math.inf)
        if pred_name is not None:
            feedback = self.metric.feedback(gold, pred, pred_name, pred_trace)
            return MetricScore.of(evaluation, feedback, self.metric.accept)
        spent = self._gateway.recorder.budget.spent
        scored = evaluation_scored(
            candidate, example, subset, evaluation.score, evaluation.components, spent, evaluation.compared
        )
        self._gateway.write(scored)
        for scores in (self.turn, self._all):
            scores.add(candidate, example, subset, evaluation.score)
        self._watch()
        return MetricScore.of(evaluation, f"scored {evaluation.score:.2f}", self.metric.accept)

    def _count(self, failure: Failure) -> None:
        own = failure.kind == CodeFailed.kind
        words = failure.reason if own else f"{failure.kind} in {failure.stage}"
        if own and words not in self.failures:
            log.warning("%s; the row counts as failed", words)
        self.failures[words] += 1
        self.code_failed |= own


def _in_json(step: Any) -> Any:
    """A step of a rollout, with what went in and came out as JSON has it; the step itself where JSON has no form of it.

    DSPy draws demonstrations by the bytes of the steps' pickle. These hold the order of each model's set of fields,
    another in each process, and which equal texts are one object; a resumed compile must draw the same ones.
    """
    try:
        predictor, inputs, outputs = step
        plain = json.loads(json.dumps([dict(inputs), dict(outputs.items())], default=_plain))
    except (AttributeError, TypeError, ValueError):
        return step
    return predictor, plain[0], dspy.Prediction(**plain[1])


def _plain(value: Any) -> Any:
    if isinstance(value, dspy.Type | dspy.History):
        raise TypeError("an adapter gives it a form other than JSON")
    return json_default(value)


def _shape(program: dspy.Module) -> list[tuple[str, tuple[str, ...]]]:
    """Predictors and their fields: an optimizer's helpers may be of the student's class, but not of its shape."""
    return [(name, tuple(predictor.signature.fields)) for name, predictor in program.named_predictors()]


def failures_of(prediction: Any) -> list[Failure]:
    """The rows that failed on the way to a prediction; an empty list for programs that record none."""
    failures = prediction.get("failures") if isinstance(prediction, dspy.Prediction) else None
    return [each for each in failures if isinstance(each, Failure)] if isinstance(failures, list) else []
