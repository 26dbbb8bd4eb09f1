"""The metric for references on a bench: a scripted judge and teacher, and samples whose texts say their worth."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import dspy
from dspy.lm15 import Request
from dspy.utils import exceptions as lm_errors

from refed_dspy.config.compile import MetricConfig
from refed_dspy.optimizers.beats_baseline import BeatsBaseline
from refed_dspy.optimizers.metrics import ExampleScore
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.records import Failure, Reference, Sample
from tests.support.scripted_engine import SAMPLE_FIELDS, Writer, fake_lm

REFERENCE = Reference(instruction="alpha beta gamma delta", response="An excellent answer.")
EXAMPLE = dspy.Example(reference=REFERENCE).with_inputs("reference")
BASE = "q=3 the plain programs answer"
"""What the uncompiled program answers, whatever it is asked. q is how good an answer is, g an instruction's grade."""


def prompt(request: Request) -> str:
    return "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)


def shown(request: Request, name: str) -> str:
    match = re.search(rf"<{name}>\n(.*?)\n</>", prompt(request), re.DOTALL)
    assert match is not None
    return match[1]


class Judge(Writer):
    """Compares answers by their q and grades texts by their g; "?" is "cannot tell", "!" an endpoint that fails."""

    def __init__(self, reason: str = "it says so") -> None:
        super().__init__()
        self.reason = reason
        self.on_request = self.decide

    def decide(self, request: Request) -> Any:
        compares = "verdict" in self.fields(request)
        texts = [shown(request, name) for name in (("answer_a", "answer_b") if compares else ("text",))]
        marks = [match[1] if (match := re.search(r"[qg]=(.)", text)) else "3" for text in texts]
        if "!" in marks:
            return lm_errors.LMServerError("the endpoint is down", model="fake")
        if "?" in marks:
            verdict = "cannot tell"
        elif compares:
            ahead = int(marks[0]) - int(marks[1])
            verdict = {0: "A=B", 1: "A>B", -1: "B>A"}.get(ahead, "A>>B" if ahead > 0 else "B>>A")
        else:
            verdict = marks[0]
        return json.dumps({"reason": self.reason, "verdict" if compares else "grade": verdict})

    def asked(self, field: str) -> list[Request]:
        return [request for request in self.requests if field in self.fields(request)]


class Bench:
    """A metric with its two models."""

    def __init__(self, reason: str = "it says so", base: str = BASE, per_feature: int = 3, **weights: Any) -> None:
        self.teacher, self.judge = Writer(), Judge(reason)
        fields = {**SAMPLE_FIELDS, "improved_response": base}
        self.teacher.on_request = lambda request: json.dumps(
            {name: fields.get(name, f"a {name}") for name in self.teacher.fields(request)}
        )
        self.program = ReferenceLevelFeedback({"subject": "what it is about"}, per_feature)
        models = fake_lm(self.teacher), fake_lm(self.judge)
        self.metric = BeatsBaseline(self.program, *models, MetricConfig(**weights))

    def score(self, samples: Sequence[Sample], *failures: Failure) -> ExampleScore:
        return self.metric.score(EXAMPLE, made(samples, *failures))

    def feedback(self, samples: Sequence[Sample], stage: str, trace: Any, *failures: Failure) -> str:
        return self.metric.feedback(EXAMPLE, made(samples, *failures), stage, trace)


def sample(number: int, quality: str = "3", grade: str = "3", length: int = len(BASE), plain: str = "plain") -> Sample:
    """One whose final answer has `length` characters."""
    return Sample(
        instruction=f"task{number} g={grade}",
        response=plain,
        improved_response=f"q={quality} number {number}".ljust(length, "x"),
        **SAMPLE_FIELDS,
    )


def made(samples: Sequence[Sample], *failures: Failure) -> dspy.Prediction:
    return dspy.Prediction(feedback=None, samples=list(samples), failures=list(failures))


def failed(stage: str, kind: str = "no answer") -> Failure:
    return Failure(stage=stage, item="x", kind=kind, reason="it went wrong")


def component(evaluation: ExampleScore, name: str) -> float:
    return evaluation.components[name]


def call(inputs: dict[str, Any], **outputs: Any) -> list[Any]:
    """What GEPA passes as `pred_trace`: the one call that is looked at."""
    return [(None, inputs, dspy.Prediction(**outputs))]
