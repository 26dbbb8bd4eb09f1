"""Asking a stage's predictor: by which answerer, for which role, and what its errors mean.

A stage does not call its predictor, it asks (`ask`). By default this calls the predictor with the language model of the
DSPy context. A run sets another answerer (`answered_by`): a recorded teacher, which returns recorded answers and
otherwise asks and records. A role (`as_role`) has other models answer. DSPy's errors become this package's.
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

from refed_dspy.config.teacher import SECRET
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
from refed_dspy.programs.fast_path import direct_engine, predict_directly
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
    """A predictor asked about an item: its stage, its inputs, and the repetition (0 for the first time)."""

    stage: str
    item: str
    predictor: dspy.Predict
    inputs: dict[str, Any]
    repetition: int = 0


class Answerer(Protocol):
    """What answers questions: a language model, or a recorded teacher in between."""

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
        tries = 0  # at temperature 0 the answer would be the same
    for retry in range(tries):
        try:
            return await _ask_once(question, lm.copy(rollout_id=_rollout(lm, retry)) if retry else None)
        except MalformedAnswer:
            continue
    return await _ask_once(question, lm.copy(rollout_id=_rollout(lm, tries)) if tries else None)


_RETRY_ROLLOUT = 10_000
"""Rollout ids of retries after a malformed answer are this far apart. Optimizers' own ids stay below."""


def _rollout(lm: Any, retry: int) -> int:
    return int(lm.kwargs.get("rollout_id") or 0) + retry * _RETRY_ROLLOUT


async def _ask_once(question: Question, lm: Any) -> dspy.Prediction:
    """One try, with `lm` in place of the predictor's language model unless it is None."""
    try:
        prediction = await _predict(question, lm)
    except AdapterParseError as error:
        # DSPy's message continues with the whole answer; the reason is its first paragraph.
        raise MalformedAnswer(question.stage, question.item, str(error).partition("\n\n")[0]) from None
    except LMError as error:
        raise _translated(error, question) from None
    for name in rendering(question.predictor.signature).outputs:
        if isinstance(prediction[name], str) and not prediction[name].strip():
            raise MalformedAnswer(question.stage, question.item, f"{name} is empty")
    return prediction


async def _predict(question: Question, lm: Any = None) -> dspy.Prediction:
    if (engine := direct_engine(question.predictor)) is not None:
        engine = engine if lm is None else lm.direct_engine
        return await predict_directly(question.predictor, engine, question.inputs)
    options = {} if lm is None else {"lm": lm}
    with dspy.context(adapter=dspy.settings.adapter or SchemaAdapter()):
        return await question.predictor.acall(**options, **question.inputs)


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
    """`error` as an error of this package. An unexpected one is a bug and is raised as it is."""
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
    for lm_error, row_error in _ROW_ERRORS:
        if isinstance(error, lm_error):
            return row_error(question.stage, question.item, reason)
    if without_keys(str(error), question.predictor.lm) != str(error):
        return TeacherError(f"{where} — not an error that was expected")
    raise error


def stop_hint(error: LMError) -> str:
    """What to do about an error that every other question would meet too; "" for an error of one row."""
    for lm_error, hint in _STOP_HINTS:
        if isinstance(error, lm_error):
            return hint
    missing = getattr(error, "status", None) == 404
    return "check the teacher's api_base, its model and, on Azure, api_version" if missing else ""


def without_keys(text: str, lm: Any = None) -> str:
    """`text` without the API keys of `lm` (or the context's) and of the environment: providers repeat them."""
    settings = getattr(lm or dspy.settings.lm, "kwargs", None) or {}
    keys = {*_secrets(settings), *(value for name, value in os.environ.items() if _KEY_VARIABLE.search(name))}
    for key in sorted(keys, key=len, reverse=True):
        if len(key) >= 8:
            text = text.replace(key, "[key]")
    return text


_KEY_VARIABLE = re.compile(r"(_KEY|_TOKEN|_SECRET)$")


def _secrets(settings: Any, named: bool = False) -> Iterator[str]:
    """Every text, at any depth, under a name that suggests an API key."""
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from _secrets(value, named or bool(SECRET.search(str(name))))
    elif named and isinstance(settings, str):
        yield settings
        yield settings.removeprefix("Bearer ")


_answerer: ContextVar[Answerer] = ContextVar("refed_answerer", default=ask_teacher)


@contextmanager
def answered_by(answerer: Answerer) -> Iterator[None]:
    """Have `answerer` answer the questions of stages inside the block."""
    token = _answerer.set(answerer)
    try:
        yield
    finally:
        _answerer.reset(token)


_roles: ContextVar[Mapping[str, tuple[Answerer, Any]]] = ContextVar("refed_roles", default=MappingProxyType({}))


@contextmanager
def with_roles(roles: Mapping[str, tuple[Answerer, Any]]) -> Iterator[None]:
    """Set the models that `as_role` uses inside the block: role → (answerer, language model)."""
    token = _roles.set(roles)
    try:
        yield
    finally:
        _roles.reset(token)


@contextmanager
def as_role(role: str) -> Iterator[None]:
    """Have the stages inside the block ask the model of `role`; if none is set (`with_roles`), the context's."""
    if role not in _roles.get():
        yield
        return
    answerer, lm = _roles.get()[role]
    with answered_by(answerer), dspy.context(lm=lm):
        yield


@dataclass
class SampleInProgress:
    """A sample being written in several answers, all by the same teacher where a pool has several."""

    about: str
    """The item; the teacher is drawn by it."""
    writer: object | None = None
    """The teacher that gave the first of the answers."""


_writing: ContextVar[SampleInProgress | None] = ContextVar("refed_writing", default=None)


@contextmanager
def same_teacher(about: str) -> Iterator[None]:
    """Have the same teacher of a pool give all answers inside the block, as long as it answers: so a response and its
    improvement differ by the improvement, and not by the writer."""
    token = _writing.set(SampleInProgress(about))
    try:
        yield
    finally:
        _writing.reset(token)


def current_sample() -> SampleInProgress | None:
    """The sample that one teacher is writing in this context, or None."""
    return _writing.get()


async def ask(stage: str, item: str, predictor: dspy.Predict, repetition: int = 0, **inputs: Any) -> dspy.Prediction:
    """The answer of `predictor` for `inputs`, from the answerer of this context."""
    return await _answerer.get()(Question(stage, item, predictor, inputs, repetition))
