"""How a stage's predictor is asked, and who may stand in between.

A stage does not call its predictor: it asks. By default asking calls the predictor with the language model of
the DSPy context. A run puts its ledger in between (`answering`), which gives back what is already paid for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import dspy
from dspy.utils import exceptions as lm_errors
from dspy.utils.exceptions import AdapterParseError, LMError

from refed_dspy.config.loading import SECRET
from refed_dspy.errors import (
    CapReached,
    ConfigError,
    CutAnswer,
    EndpointBusy,
    MalformedAnswer,
    NoAnswer,
    NoConnection,
    RefedError,
    RefusedAnswer,
    RunStopped,
    TeacherError,
    UnfitRequest,
    one_line,
)
from refed_dspy.programs.adapter import SchemaAdapter, rendering
from refed_dspy.programs.fast_path import predict_straight, unwatched_engine
from refed_dspy.programs.lm_errors import (
    AnswerCut,
    AnswerRefused,
    BatchRejected,
    LMCapReached,
    NoBatches,
    NotAnApi,
    NotReached,
    StillLimited,
    WorkEnds,
)


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
    lm = question.predictor.lm or dspy.settings.lm
    tries = getattr(lm, "malformed_retries", 0)
    if tries and not lm.kwargs.get("temperature"):
        tries = 0  # it would say the same again
    for repeated in range(tries):
        try:
            return await _asked_once(question, lm.copy(rollout_id=_rollout(lm, repeated)) if repeated else None)
        except MalformedAnswer:
            continue
    return await _asked_once(question, lm.copy(rollout_id=_rollout(lm, tries)) if tries else None)


_AGAIN = 10_000
"""Where the repetitions begin that are asked for since an answer was malformed: optimizers' own stay below."""


def _rollout(lm: Any, repeated: int) -> int:
    return int(lm.kwargs.get("rollout_id") or 0) + repeated * _AGAIN


async def _asked_once(question: Question, lm: Any) -> dspy.Prediction:
    """One try, with another language model than the predictor's if one is given."""
    try:
        prediction = await _predicted(question, lm)
    except AdapterParseError as error:
        # DSPy's message goes on with the whole answer; the reason is its first paragraph.
        raise MalformedAnswer(question.stage, question.item, str(error).partition("\n\n")[0]) from None
    except LMError as error:
        raise _translated(error, question) from None
    for name in rendering(question.predictor.signature).outputs:
        if isinstance(prediction[name], str) and not prediction[name].strip():
            raise MalformedAnswer(question.stage, question.item, f"{name} is empty")
    return prediction


async def _predicted(question: Question, lm: Any = None) -> dspy.Prediction:
    if (engine := unwatched_engine(question.predictor)) is not None:
        engine = engine if lm is None else lm.straight
        return await predict_straight(question.predictor, engine, question.inputs)
    other = {} if lm is None else {"lm": lm}
    with dspy.context(adapter=dspy.settings.adapter or SchemaAdapter()):
        return await question.predictor.acall(**other, **question.inputs)


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
    (NotAnApi, "check api_base, and the proxies set in the environment"),
    (NoBatches, "set mode: interactive, or name an endpoint that takes batches"),
    (BatchRejected, "nothing of it was paid for; mend that, or set mode: interactive"),
)


def _translated(error: LMError, question: Question) -> RefedError:
    """`error` in this package's terms. An unexpected one is a bug and is raised as it is."""
    reason = one_line(without_keys(getattr(error, "message", "") or str(error), question.predictor.lm))
    where = f"{question.stage} of {question.item}: {reason}"
    if isinstance(error, LMCapReached):
        return CapReached("", reason=reason)
    if isinstance(error, StillLimited):
        return EndpointBusy(reason)
    if isinstance(error, WorkEnds):
        return RunStopped(reason)
    if hint := stop_hint(error):
        return TeacherError(f"{where} — {hint}")
    for source, row in _ROW_ERRORS:
        if isinstance(error, source):
            return row(question.stage, question.item, reason)
    if without_keys(str(error), question.predictor.lm) != str(error):
        return TeacherError(f"{where} — not an error that was expected")
    raise error


def stop_hint(error: LMError) -> str:
    """What to do about an error after which no other question would fare better; empty for one row's bad luck."""
    for source, hint in _STOP_HINTS:
        if isinstance(error, source):
            return hint
    missing = getattr(error, "status", None) == 404
    return "check the teacher's api_base, its model and, on Azure, api_version" if missing else ""


def without_keys(text: str, lm: Any = None) -> str:
    """`text` without any key that `lm`, or that of the context, or the environment holds: providers repeat them."""
    settings = getattr(lm or dspy.settings.lm, "kwargs", None) or {}
    keys = {*_secrets(settings), *(value for name, value in os.environ.items() if _KEY_VARIABLE.search(name))}
    for key in sorted(keys, key=len, reverse=True):
        if len(key) >= 8:
            text = text.replace(key, "[key]")
    return text


_KEY_VARIABLE = re.compile(r"(_KEY|_TOKEN|_SECRET)$")


def _secrets(settings: Any, named: bool = False) -> Iterator[str]:
    """Every text under a name that sounds like a key's, however deep."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from _secrets(value, named or bool(SECRET.search(str(name))))
    elif named and isinstance(settings, str):
        yield settings
        yield settings.removeprefix("Bearer ")


_answerer: ContextVar[Answerer] = ContextVar("refed_answerer", default=ask_teacher)


@contextmanager
def answered_by(answerer: Answerer) -> Iterator[None]:
    """Put `answerer` between the stages and the teacher inside the block."""
    token = _answerer.set(answerer)
    try:
        yield
    finally:
        _answerer.reset(token)


_others: ContextVar[Mapping[str, tuple[Answerer, Any]]] = ContextVar("refed_others", default=MappingProxyType({}))


@contextmanager
def with_roles(others: Mapping[str, tuple[Answerer, Any]]) -> Iterator[None]:
    """Let `asking` find other models inside the block: role → who answers, with which language model."""
    token = _others.set(others)
    try:
        yield
    finally:
        _others.reset(token)


@contextmanager
def as_role(role: str) -> Iterator[None]:
    """Have the stages inside the block ask the model of `role`; where none is offered, the one of the context."""
    if role not in _others.get():
        yield
        return
    answerer, lm = _others.get()[role]
    with answered_by(answerer), dspy.context(lm=lm):
        yield


@dataclass
class SampleInProgress:
    """One text being written in several answers, by one hand where several could write it."""

    about: str
    """What is written, which draws the hand."""
    hand: object | None = None
    """Whoever gave the first of the answers."""


_writing: ContextVar[SampleInProgress | None] = ContextVar("refed_writing", default=None)


@contextmanager
def same_teacher(about: str) -> Iterator[None]:
    """Have one teacher of a pool give all answers inside the block, for as long as it answers: so a response and its
    improvement differ by what was improved, and not by who wrote."""
    token = _writing.set(SampleInProgress(about))
    try:
        yield
    finally:
        _writing.reset(token)


def current_sample() -> SampleInProgress | None:
    """What is being written by one hand, or None."""
    return _writing.get()


async def ask(stage: str, item: str, predictor: dspy.Predict, repetition: int = 0, **inputs: Any) -> dspy.Prediction:
    """The answer of `predictor` for `inputs`, from whoever answers in this context."""
    return await _answerer.get()(Question(stage, item, predictor, inputs, repetition))
