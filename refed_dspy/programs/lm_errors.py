"""The errors of teachers' engines, as kinds of DSPy's LMError, which passes through DSPy's layers as it is; and what
they are outside of those layers: errors of this package."""

from __future__ import annotations

import dspy
from dspy.utils import exceptions as lm_errors
from dspy.utils.exceptions import AdapterParseError, LMError, LMTransportError

from refed_dspy.config.keys import know_environment, know_settings, without_keys
from refed_dspy.errors import (
    CapReached,
    CutAnswer,
    EndpointBusy,
    MalformedAnswer,
    NoAnswer,
    NoConnection,
    RefedError,
    RefusedAnswer,
    RowError,
    RunStopped,
    TeacherError,
    TooLong,
    UnfitRequest,
    one_line,
)
from refed_dspy.programs.question import Question


class AnswerCut(LMError):
    """The answer ended at the token limit. DSPy alone would accept it."""


class AnswerRefused(LMError):
    """A content filter, or the model, declined."""


class NotReached(LMTransportError):
    """No connection could be made, so nothing was sent."""


class NotAnApi(LMError):
    """The endpoint answered with a web page: it is not an API."""


class Redirected(LMError):
    """The endpoint named another address. No redirect is followed: keys and prompts would go there."""

    def __init__(self, endpoint: str, status: int) -> None:
        super().__init__(f"{endpoint} redirects to another address (HTTP {status}), and redirects are not followed")


class StillLimited(LMError):
    """The endpoint's rate limit has refused every request for minutes."""


class NoBatches(LMError):
    """The endpoint takes no batches."""


class BatchRejected(LMError):
    """The service refused a whole batch, so nothing of it was sent to the model."""


class WorkEnds(LMError):
    """The run ends, and no other teacher is asked instead: a person must decide whether to pay another one's price."""


class BatchOutOfReach(WorkEnds):
    """A batch that is under way cannot be queried. It is in the ledger."""


class LMCapReached(LMError):
    """`reached` as an LMError."""

    def __init__(self, reached: CapReached) -> None:
        super().__init__(str(reached))
        self.reached = reached


class InTransit(LMError):
    """An error of this package on its way through DSPy's layers."""

    def __init__(self, error: RefedError) -> None:
        super().__init__(str(error))
        self.error = error


def in_transit(error: RefedError) -> LMError:
    """`error` as DSPy's layers let it pass: as the LMError that it comes from, or that its kind stands for, since
    modules look for some of them (a request that is too long can be shortened); else wrapped."""
    if isinstance(error, RowError) and isinstance(cause := error.__cause__, LMError):
        cause.message, cause.args = error.reason, (error.reason,)  # without the keys that it may have repeated
        return cause
    if isinstance(error, CapReached):
        return LMCapReached(error)
    if (kind := _OF_ROW_ERRORS.get(type(error))) is not None:
        return kind(message=str(getattr(error, "reason", error)))
    return InTransit(error)


_OF_ROW_ERRORS: dict[type[RefedError], type[LMError]] = {
    CutAnswer: AnswerCut,
    RefusedAnswer: AnswerRefused,
    TooLong: lm_errors.ContextWindowExceededError,
    UnfitRequest: lm_errors.LMInvalidRequestError,
}
_ROW_ERRORS = (
    (AnswerCut, CutAnswer),
    (AnswerRefused, RefusedAnswer),
    (lm_errors.ContextWindowExceededError, TooLong),
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
    (Redirected, "set api_base to the final address (perhaps https instead of http)"),
    (NotAnApi, "check api_base and the environment's proxy settings"),
    (NoBatches, "set mode: interactive or use an endpoint that takes batches"),
    (BatchRejected, "none of it was paid for; fix that or set mode: interactive"),
)


def translated(error: LMError | AdapterParseError, question: Question) -> RefedError:
    """`error` of a call for `question`, as an error of this package. An unexpected one is a bug and is raised as it is.

    A key that the error's message repeats is taken out.
    """
    if isinstance(error, InTransit):
        own = error.error
        return type(own)(question.stage, question.item, own.reason) if isinstance(own, RowError) else own
    if isinstance(error, AdapterParseError):
        # DSPy's message continues with the whole answer; the reason is its first paragraph.
        return MalformedAnswer(question.stage, question.item, str(error).partition("\n\n")[0])
    lm = question.lm or dspy.settings.lm
    know_settings(getattr(getattr(lm, "recorded", lm), "kwargs", None))
    know_environment()
    reason = one_line(without_keys(str(getattr(error, "message", "") or error)))
    if isinstance(error, LMCapReached):
        return CapReached(error.reached.cap, error.reached.worst_picodollars, reason)
    if isinstance(error, StillLimited):
        return EndpointBusy(reason)
    if isinstance(error, WorkEnds):
        return RunStopped(reason)
    if hint := stop_hint(error):
        return TeacherError(f"{question}: {reason} — {hint}")
    if (row_error := row_error_of(error)) is not None:
        return row_error(question.stage, question.item, reason)
    if without_keys(str(error)) != str(error):
        return TeacherError(f"{question}: {reason} — unexpected error")
    raise error


def row_error_of(error: BaseException) -> type[RowError] | None:
    """The kind of failure that `error` of a call is to its row; None where it is no row's failure."""
    if isinstance(error, InTransit):
        return type(error.error) if isinstance(error.error, RowError) else None
    if isinstance(error, AdapterParseError):
        return MalformedAnswer
    if not isinstance(error, LMError) or stop_hint(error):
        return None
    return next((row_error for lm_error, row_error in _ROW_ERRORS if isinstance(error, lm_error)), None)


def stop_hint(error: LMError) -> str:
    """What to do about an error that every other question would meet too; "" for an error of one row."""
    for lm_error, hint in _STOP_HINTS:
        if isinstance(error, lm_error):
            return hint
    missing = getattr(error, "status", None) == 404
    return "check the teacher's api_base, its model and, on Azure, api_version" if missing else ""
