"""One call to a teacher: attempts, waits, and an honest report of each.

DSPy's own retries wait as long as a server says and in step with each other, and a cut answer is only a log
line to it. Here an attempt has a deadline, waits have jitter and a cap, and an answer that was cut or filtered is an
error. `dspy.LM` is told not to retry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self
from weakref import WeakKeyDictionary

from dspy._vendor.lm15.transports import ConnectError
from dspy.lm15 import (
    AsyncLMRouter,
    BillingError,
    LM15Error,
    RateLimitError,
    Request,
    Response,
    ServerError,
    TransportError,
)
from dspy.lm15 import TimeoutError as AnswerTimeout
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from refed_dspy.calls import AnswerCut, AnswerRefused, NotReached, call_seed, report, stopping
from refed_dspy.config import TeacherConfig
from refed_dspy.records import Call
from refed_dspy.teachers.route import Route

WAIT_CAP = 60.0
"""Seconds that no wait between attempts exceeds, whatever a Retry-After asks for."""
_TRANSIENT = (RateLimitError, ServerError, TransportError, AnswerTimeout)
_BACKOFF = wait_random_exponential(multiplier=0.5, max=30)
_BOUNDS = {"maxLength", "minLength", "maxItems", "minItems"}
LONGEST_BOUND = 1_999
"""Characters: llama.cpp's grammar takes a longer bound for none, and some of its versions refuse it."""


class _Attempts:
    """What both doors share: how a request is sent off and how its end is read."""

    supports_response_schema = True
    supports_function_calling = False
    supported_params = frozenset({"temperature", "max_tokens", "response_format"})

    def __init__(self, config: TeacherConfig, route: Route, label: str | None = None) -> None:
        self.config, self.route = config, route
        self.endpoint = label or route.endpoint
        self.model = str(config.model or config.gguf)
        self.answered = False
        """Whether this endpoint ever answered. Until it has, a refused connection is not waited for."""

    def __deepcopy__(self, memo: object) -> Self:
        return self  # optimizers copy programs, and with them their LM: the pool is shared

    def outgoing(self, request: Request) -> Request:
        """`request` as this teacher takes it: its model, its further parameters, its kind of schema."""
        extensions = dict(self.config.params)
        if self.config.embedded and (seed := call_seed()) is not None:
            extensions.setdefault("seed", seed)
        format_ = request.config.response_format
        if format_:
            format_ = _fitting(format_, self.route.bounded_schema)
        config = replace(request.config, extensions=extensions or None, response_format=format_)
        return replace(request, model=self.route.model, config=config)

    def retrying(self) -> dict[str, Any]:
        return {
            "stop": stop_after_attempt(self.config.retries + 1),
            "wait": _wait,
            "retry": retry_if_exception(self.worth_retrying),
            "reraise": True,
        }

    def worth_retrying(self, error: BaseException) -> bool:
        if stopping():
            return False
        if isinstance(error, NotReached):
            return self.answered
        return isinstance(error, _TRANSIENT) and not isinstance(error, BillingError)

    def finished(self, response: Response, started: float) -> Response:
        """Report a finished attempt; an answer that is not whole raises."""
        self.answered = True
        reason = response.finish_reason
        outcome = {"length": "cut", "content_filter": "refused"}.get(reason, "ok")
        if outcome == "ok" and any(part.type == "refusal" for part in response.message.parts):
            outcome = "refused"
        usage = response.usage
        report(
            self._call(
                outcome,
                started,
                prompt_tokens=usage.input_tokens,
                cached_tokens=usage.cache_read_tokens,
                completion_tokens=usage.output_tokens,
            )
        )
        if outcome == "cut":
            raise AnswerCut(f"cut at max_tokens={self.config.max_tokens}: raise it in the teacher's settings")
        if outcome == "refused":
            raise AnswerRefused("declined by the model or its content filter")
        return response

    def failed(self, error: BaseException, started: float) -> BaseException:
        """Report an attempt that brought no answer. Returns the error to raise: without the key, if it held it."""
        if not isinstance(error, LM15Error):
            report(self._call("cancelled" if isinstance(error, asyncio.CancelledError) else "error", started))
            return error
        if isinstance(error, TransportError) and isinstance(error.__cause__, ConnectError):
            unreached: BaseException = NotReached(f"{self.endpoint} cannot be reached: {error.message}")
            return unreached
        if (key := self.route.key()) and key in str(error):
            error.message = error.message.replace(key, "[key]")
            error.args = tuple(arg.replace(key, "[key]") if isinstance(arg, str) else arg for arg in error.args)
        report(self._call("no answer" if error.status is None else f"http {error.status}", started))
        kept: BaseException = error
        return kept

    def _call(self, outcome: str, started: float, **tokens: int | None) -> Call:
        return Call(self.model, self.endpoint, outcome, round(time.monotonic() - started, 3), **tokens)


def _wait(state: RetryCallState) -> float:
    """Exponential with full jitter; after a Retry-After, that and a little more, but never past the cap."""
    wait = _BACKOFF(state)
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after", None)
    return min(WAIT_CAP, asked + 0.2 * wait) if asked else wait


def _fitting(part: Any, bounded: bool) -> Any:
    """A schema with the bounds that the endpoint's decoder takes: none, or those that are not too long for it."""
    if isinstance(part, Mapping):
        return {k: _fitting(v, bounded) for k, v in part.items() if not _is_unfit_bound(k, v, bounded)}
    return [_fitting(item, bounded) for item in part] if isinstance(part, list | tuple) else part


def _is_unfit_bound(name: str, value: Any, bounded: bool) -> bool:
    # A property of the schema may be called maxLength, too: then its value is a schema.
    if name not in _BOUNDS or not isinstance(value, int):
        return False
    return not bounded or (name == "maxLength" and value > LONGEST_BOUND)


class TeacherEngine(_Attempts):
    """The asynchronous door, with a connection pool for each event loop."""

    def __init__(self, config: TeacherConfig, route: Route, label: str | None = None) -> None:
        super().__init__(config, route, label)
        self._doors: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[AsyncLMRouter, Any]] = WeakKeyDictionary()

    async def complete(self, request: Request) -> Response:
        """The whole answer. Raises LM15Error after the last attempt, AnswerCut, AnswerRefused."""
        outgoing = self.outgoing(request)
        async for attempt in AsyncRetrying(**self.retrying()):
            with attempt:
                return await self._attempt(outgoing)
        raise AssertionError("tenacity ends by returning or raising")

    async def _attempt(self, request: Request) -> Response:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.config.timeout):
                response = await self._door()[0].complete(request)
        except TimeoutError as error:  # asyncio's; lm15's own is a subclass and carries more
            late = error if isinstance(error, LM15Error) else AnswerTimeout(f"no answer in {self.config.timeout:g} s")
            raise self.failed(late, started) from None
        except BaseException as error:
            if (told := self.failed(error, started)) is not error:
                raise told from error
            raise
        return self.finished(response, started)

    def _door(self) -> tuple[AsyncLMRouter, Any]:
        loop = asyncio.get_running_loop()
        if loop not in self._doors:
            self._doors[loop] = self.route.async_door()
        return self._doors[loop]

    async def aclose(self) -> None:
        """Close this loop's connections."""
        if (door := self._doors.pop(asyncio.get_running_loop(), None)) is not None:
            await door[1].aclose()


class SyncTeacherEngine(_Attempts):
    """The synchronous door: for a predictor called without an event loop."""

    def complete(self, request: Request) -> Response:
        """As `TeacherEngine.complete`."""
        outgoing = self.outgoing(request)
        for attempt in Retrying(**self.retrying()):
            with attempt:
                return self._attempt(outgoing)
        raise AssertionError("tenacity ends by returning or raising")

    def _attempt(self, request: Request) -> Response:
        started = time.monotonic()
        router, transport = self.route.door()
        try:
            response = router.complete(request)
        except BaseException as error:
            if (told := self.failed(error, started)) is not error:
                raise told from error
            raise
        finally:
            transport.close()
        return self.finished(response, started)
