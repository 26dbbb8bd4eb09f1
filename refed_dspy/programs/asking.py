"""How a stage's predictor is asked, and who may stand in between.

A stage does not call its predictor: it asks. By default asking calls the predictor with the language model of
the DSPy context. A run puts its ledger in between (`answering`), which gives back what is already paid for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import dspy
from dspy.utils import exceptions as lm_errors
from dspy.utils.exceptions import AdapterParseError, LMError

from refed_dspy.calls import AnswerCut, AnswerRefused, NotReached
from refed_dspy.errors import (
    ConfigError,
    CutAnswer,
    MalformedAnswer,
    NoAnswer,
    NoConnection,
    RefedError,
    RefusedAnswer,
    TeacherError,
    UnfitRequest,
    one_line,
)
from refed_dspy.programs.adapter import SchemaAdapter


@dataclass(frozen=True)
class Question:
    """One predictor to ask: which stage it is, about what, with which inputs, for the how-manieth time."""

    stage: str
    item: str
    predictor: dspy.Predict
    inputs: dict[str, Any]
    repetition: int = 0


class Answerer(Protocol):
    async def __call__(self, question: Question) -> dspy.Prediction:
        """The predictor's typed outputs. Raises RowError for this row, TeacherError for the whole run."""


async def ask_teacher(question: Question) -> dspy.Prediction:
    """Call the predictor with the language model of the DSPy context.

    Raises:
        RowError: this answer is missing or unusable.
        TeacherError: no answer can be had at all: key, account, model or endpoint.
        ConfigError: no language model is set.
    """
    if (question.predictor.lm or dspy.settings.lm) is None:
        raise ConfigError(
            "no teacher: pass teacher=…, or set one with dspy.configure(lm=dspy.LM('openai/gpt-4o-mini'))"
        )
    try:
        with dspy.context(adapter=dspy.settings.adapter or SchemaAdapter()):
            prediction = await question.predictor.acall(**question.inputs)
    except AdapterParseError as error:
        # DSPy's message goes on with the whole answer; the reason is its first paragraph.
        raise MalformedAnswer(question.stage, question.item, str(error).partition("\n\n")[0]) from None
    except LMError as error:
        raise _translated(error, question) from error
    for name in question.predictor.signature.output_fields:
        if isinstance(prediction[name], str) and not prediction[name].strip():
            raise MalformedAnswer(question.stage, question.item, f"{name} is empty")
    return prediction


_ROW_ERRORS = (
    (AnswerCut, CutAnswer),
    (AnswerRefused, RefusedAnswer),
    (lm_errors.ContextWindowExceededError, UnfitRequest),
    (lm_errors.LMInvalidRequestError, UnfitRequest),
    (lm_errors.LMTimeoutError, NoAnswer),
    (lm_errors.LMRateLimitError, NoAnswer),
    (lm_errors.LMServerError, NoAnswer),
    (NotReached, NoConnection),
    (lm_errors.LMTransportError, NoAnswer),
    (lm_errors.LMProviderError, NoAnswer),
)

_STOP_HINTS = (
    (lm_errors.LMAuthError, "check the key in the variable that api_key_env names"),
    (lm_errors.LMBillingError, "check the account's balance and quota"),
    (lm_errors.LMUnsupportedModelError, "check the teacher's model and api_base"),
    (lm_errors.LMUnsupportedFeatureError, "check the teacher's params"),
    (lm_errors.LMConfigurationError, "check the teacher's settings"),
)


def _translated(error: LMError, question: Question) -> RefedError:
    """`error` in this package's terms. An unexpected one is a bug and is raised as it is."""
    reason = one_line(getattr(error, "message", "") or str(error))
    for source, hint in _STOP_HINTS:
        if isinstance(error, source):
            return TeacherError(f"{question.stage} of {question.item}: {reason} — {hint}")
    if getattr(error, "status", None) == 404:
        return TeacherError(f"{question.stage} of {question.item}: {reason} — check the teacher's api_base and model")
    for source, row in _ROW_ERRORS:
        if isinstance(error, source):
            return row(question.stage, question.item, reason)
    raise error


_answerer: ContextVar[Answerer] = ContextVar("refed_answerer", default=ask_teacher)


@contextmanager
def answering(answerer: Answerer) -> Iterator[None]:
    """Put `answerer` between the stages and the teacher inside the block."""
    token = _answerer.set(answerer)
    try:
        yield
    finally:
        _answerer.reset(token)


async def ask(stage: str, item: str, predictor: dspy.Predict, repetition: int = 0, **inputs: Any) -> dspy.Prediction:
    """The answer of `predictor` for `inputs`, from whoever answers in this context."""
    return await _answerer.get()(Question(stage, item, predictor, inputs, repetition))
