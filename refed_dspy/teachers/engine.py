"""One call to a teacher: attempts, waits, and an honest report of each.

DSPy's own retries wait as long as a server says and in step with each other, and a cut answer is only a log
line to it. Here an attempt has a deadline, waits have jitter and a cap, and an answer that was cut or filtered is an
error. `dspy.LM` is told not to retry.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from weakref import WeakKeyDictionary

from dspy.lm15 import LM15Error, ProviderError, Request, Response
from dspy.lm15 import TimeoutError as AnswerTimeout
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from refed_dspy.config.loading import TeacherConfig
from refed_dspy.errors import CapReached, one_line
from refed_dspy.ledger.attempt import Attempt
from refed_dspy.ledger.recorder import Recorder, current_recorder
from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused, LMCapReached, NotReached, StillLimited
from refed_dspy.teachers.outcomes import (
    SentAttempt,
    as_text,
    error_to_raise,
    is_overload,
    is_rate_limit,
    is_transient,
    outcome_of,
    reserved,
)
from refed_dspy.teachers.prices import Price
from refed_dspy.teachers.rate_limits import LONGEST_PAUSE, RateLimits, Slot, WaitTooLong, WatchedTransport
from refed_dspy.teachers.requests import Outgoing
from refed_dspy.teachers.route import Route

_BACKOFF = wait_random_exponential(multiplier=0.5, max=30)


class _Attempts:
    """What both doors share: how a request is made ready and how its end is read."""

    supports_response_schema = True
    supports_function_calling = False
    supported_params = frozenset({"temperature", "max_tokens", "response_format"})

    def __init__(self, config: TeacherConfig, route: Route, price: Price | None, label: str | None = None) -> None:
        self.config, self.route, self.price = config, route, price
        self.endpoint = label or route.endpoint
        self.model = str(config.model or config.gguf)
        self.outgoing = Outgoing(config, route)
        self.answered = False
        """Whether this endpoint ever answered. Until it has, a refused connection is not waited for."""

    def __deepcopy__(self, memo: object) -> Self:
        return self  # optimizers copy programs, and with them their LM: the pool is shared

    def retrying(self, recorder: Recorder) -> dict[str, Any]:
        return {
            "stop": stop_after_attempt(self.config.retries + 1),
            "wait": _wait,
            "retry": retry_if_exception(lambda error: not recorder.stopping and self._worth_retrying(error)),
            "reraise": True,
        }

    def _worth_retrying(self, error: BaseException) -> bool:
        return self.answered if isinstance(error, NotReached) else is_transient(error)

    def worst(self, prompt_bound: int) -> int | None:
        """The most a call with such a prompt can cost, in picodollars."""
        return None if self.price is None else self.price.worst(prompt_bound, self.config.max_tokens)

    def receipt(self, worst: int | None, number: int) -> SentAttempt:
        return SentAttempt(self.model, self.endpoint, self.price, worst, number, time.monotonic())

    def finished(self, response: Response, receipt: SentAttempt, recorder: Recorder) -> Response:
        """Report a finished attempt; an answer that is not whole raises."""
        self.answered = True
        outcome = outcome_of(response)
        recorder.report(receipt.answered(outcome, response, self.route))
        if outcome == "cut":
            raise AnswerCut(f"cut at max_tokens={self.config.max_tokens}: raise it in the teacher's settings")
        if outcome == "refused":
            raise AnswerRefused("declined by the model or its content filter")
        return as_text(response)

    def failed(self, error: BaseException, receipt: SentAttempt, recorder: Recorder) -> BaseException:
        """Report an attempt that brought no answer. Returns the error to raise: without the key, if it held it."""
        telling = error
        if isinstance(error, LM15Error):
            telling = error_to_raise(error, self.endpoint, self.route.key(), self.answered)
        if isinstance(telling, NotReached):
            recorder.not_sent(receipt.number)
        else:
            recorder.report(receipt.failed(error))
        return telling


def _wait(state: RetryCallState) -> float:
    """Exponential with full jitter; after a Retry-After, that and a little more, but never past the cap."""
    wait = _BACKOFF(state)
    error = state.outcome.exception() if state.outcome else None
    asked = getattr(error, "retry_after", None)
    return min(LONGEST_PAUSE, asked + 0.2 * wait) if asked else wait


def after_first(first: Exception, ask: Callable[[], Awaitable[Response]]) -> Callable[[], Awaitable[Response]]:
    """`ask`, but for the first time, which has failed already."""
    failures = [first]

    async def attempt() -> Response:
        if failures:
            raise failures.pop()
        return await ask()

    return attempt


def _ending(limits: RateLimits, error: BaseException) -> Callable[[Slot], None]:
    """What the limits are told of an attempt that failed."""
    if is_rate_limit(error) or is_overload(error):
        return partial(limits.refused, retry_after=getattr(error, "retry_after", None))
    return limits.ended


@dataclass
class Connections:
    """What one event loop has of its own: connections, and limits whose waits belong to that loop."""

    lm: Any
    transport: Any
    limits: RateLimits


class TeacherEngine(_Attempts):
    """The asynchronous door, with connections and limits for each event loop."""

    def __init__(self, config: TeacherConfig, route: Route, price: Price | None, label: str | None = None) -> None:
        super().__init__(config, route, price, label)
        self._doors: WeakKeyDictionary[asyncio.AbstractEventLoop, Connections] = WeakKeyDictionary()
        self.beside: TeacherEngine | None = None
        """Another engine of the same model at the same endpoint, whose limits are this one's too."""

    async def complete(self, request: Request) -> Response:
        """The whole answer.

        Raises LM15Error after the last attempt, AnswerCut, AnswerRefused, NotReached, NotAnApi, StillLimited, and
        whatever the books raise.
        """
        recorder = current_recorder()
        outgoing, prompt_bound = self.outgoing(request, recorder.seed)
        ask = partial(self._admitted, outgoing, prompt_bound, recorder)
        try:
            return await ask()
        except (LM15Error, NotReached) as error:
            # Nearly every call ends above: tenacity (0.05 ms a call) is asked in only where one has failed.
            first = error
        return await AsyncRetrying(**self.retrying(recorder))(after_first(first, ask))

    async def _admitted(self, request: Request, prompt_bound: int, recorder: Recorder) -> Response:
        """One attempt, and again for as long as it is refused for the rate limit: no row is lost to a 429."""
        door, refusals = self._door(), 0
        while True:
            try:
                return await self._attempt(door, request, prompt_bound, recorder)
            except LM15Error as error:
                if not is_rate_limit(error) or recorder.stopping:
                    raise
                if door.limits.hopeless:
                    raise StillLimited(f"{self.endpoint} has refused everything for minutes: {error.message}") from None
                # One that is told a time waits for it with all others; refused again, it also waits by itself.
                if refusals or not getattr(error, "retry_after", None):
                    await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.2 * 2 ** min(refusals, 9))))
                refusals += 1

    async def _attempt(self, door: Connections, request: Request, prompt_bound: int, recorder: Recorder) -> Response:
        limits = door.limits
        try:
            turn = await limits.turn(prompt_bound / 4 + self.config.max_tokens)
        except WaitTooLong as error:
            raise StillLimited(f"{self.endpoint} {error}, by its rate limit") from None
        end: Callable[[Slot], None] = limits.ended
        try:
            worst = self.worst(prompt_bound)
            receipt = self.receipt(worst, await reserved(recorder, Attempt(self.model, self.endpoint, worst)))
            limits.sent(turn)
            try:
                response = await self._in_time(door, request, turn)
            except BaseException as error:
                end = _ending(limits, error)
                if (telling := self.failed(error, receipt, recorder)) is not error:
                    raise telling from None
                raise
            end = limits.went_well
            return self.finished(response, receipt, recorder)
        finally:
            end(turn)

    async def _in_time(self, door: Connections, request: Request, turn: Slot) -> Response:
        """The answer, within one deadline over everything. Raises lm15's TimeoutError, which is also Python's."""
        try:
            async with asyncio.timeout(self.config.timeout):
                answer: Response = await door.lm.complete(request)
        except LM15Error:
            raise
        except TimeoutError:
            raise AnswerTimeout(f"no answer in {self.config.timeout:g} s") from None
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if not turn.answered:
                raise
            # lm15 stumbles over some shapes of JSON: that is the endpoint's fault, and one row's.
            raise ProviderError(f"its answer cannot be read: {type(error).__name__}: {one_line(error, 120)}") from None
        return answer

    def _door(self) -> Connections:
        loop = asyncio.get_running_loop()
        if (door := self._doors.get(loop)) is None:
            config = self.config
            limits = (
                self.beside._door().limits
                if self.beside is not None
                else RateLimits(self.concurrency, config.requests_per_minute, config.tokens_per_minute)
            )
            transport = self.route.async_transport()
            door = self._doors[loop] = Connections(
                self.route.async_lm(WatchedTransport(transport, limits)), transport, limits
            )
        return door

    @property
    def concurrency(self) -> int:
        return self.config.concurrency or 32

    async def aclose(self) -> None:
        """Close this loop's connections."""
        if (door := self._doors.pop(asyncio.get_running_loop(), None)) is not None:
            await door.transport.aclose()


class SyncTeacherEngine(_Attempts):
    """The synchronous door: for a predictor called without an event loop. It keeps no limits but its own retries."""

    def complete(self, request: Request) -> Response:
        """As `TeacherEngine.complete`."""
        recorder = current_recorder()
        outgoing, prompt_bound = self.outgoing(request, recorder.seed)
        for attempt in Retrying(**self.retrying(recorder)):
            with attempt:
                return self._attempt(outgoing, prompt_bound, recorder)
        raise AssertionError("tenacity ends by returning or raising")

    def _attempt(self, request: Request, prompt_bound: int, recorder: Recorder) -> Response:
        worst = self.worst(prompt_bound)
        try:
            receipt = self.receipt(worst, recorder.reserve_now(Attempt(self.model, self.endpoint, worst)))
        except CapReached as error:
            raise LMCapReached(str(error)) from None
        transport = self.route.sync_transport()
        try:
            response = self.route.sync_lm(transport).complete(request)
        except BaseException as error:
            if (telling := self.failed(error, receipt, recorder)) is not error:
                raise telling from error
            raise
        finally:
            transport.close()
        return self.finished(response, receipt, recorder)
