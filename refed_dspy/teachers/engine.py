"""The engines behind a teacher's `dspy.LM`: attempts with a deadline, retries, and a record of every attempt.

DSPy's own retries wait as long as a server says, all at the same moment, and DSPy only logs that an answer was cut.
Here an attempt has a deadline, waits have jitter and a cap, and an answer that was cut or filtered is an error.
Retries of `dspy.LM` itself are off.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from dspy.clients.errors import wrap_error
from dspy.lm15 import LM15Error, Request, Response, TransportError, UnsupportedFeatureError
from dspy.lm15 import TimeoutError as AnswerTimeout
from dspy.utils.exceptions import LMError

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.connections import Connections, NotConnected
from refed_dspy.errors import NoAnswer, NoConnection, one_line
from refed_dspy.ledger.recorder import Recorder, current_recorder
from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused, NotReached, StillLimited, row_error_of, stop_hint
from refed_dspy.programs.question import takes_cut
from refed_dspy.teachers.outage import Outage
from refed_dspy.teachers.outcomes import (
    SentAttempt,
    error_to_raise,
    in_text,
    is_overload,
    is_rate_limit,
    is_transient,
    outcome_of,
)
from refed_dspy.teachers.prices import Price
from refed_dspy.teachers.rate_limits import LONGEST_PAUSE, PROBES, NoSlot, RateLimits, Silent, Slot, seconds_alone
from refed_dspy.teachers.requests import Bound, Outgoing
from refed_dspy.teachers.route import Route
from refed_dspy.teachers.transport import (
    Reading,
    Unreadable,
    WatchedTransport,
    bytes_of_logprobs,
    current_reading,
    longest_answer,
)
from refed_dspy.teachers.usage import first_choice, sent_before, without_usage

log = logging.getLogger("refed_dspy.teachers")


class TeacherEngine:
    """The asynchronous engine, with connections and rate limits for each event loop.

    A request goes down, and what it becomes comes up: `complete`; `in_its_dialect`, without a parameter that the
    endpoint refuses; `retried`, after errors that may pass; `_past_rate_limits`, after a 429; `_attempt`, with a slot,
    a reservation and a record; `_in_time`, with a deadline; `answer_from`, even where lm15 cannot read all of it.
    """

    def __init__(self, config: TeacherConfig, route: Route, price: Price | None, label: str | None = None) -> None:
        self.config, self.route, self.price = config, route, price
        self.endpoint = label or route.endpoint
        self.model = str(config.model or config.gguf)
        self.outgoing = Outgoing(config, route)
        self.answered = False
        """Whether this endpoint ever answered. Until it has, a refused connection is not waited for."""
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, OfLoop] = WeakKeyDictionary()
        self.shares_limits_with: TeacherEngine | None = None
        """Another engine of the same model at the same endpoint, whose rate limits this one uses."""
        self._doubted = False

    async def complete(self, request: Request) -> Response:
        """The whole answer.

        Raises LM15Error after the last attempt, AnswerCut, AnswerRefused, NotReached, NotAnApi, StillLimited, and
        whatever the recorder raises.
        """
        recorder = current_recorder.get()

        async def ask(outgoing: Request, bound: Bound) -> Response:
            return await self.retried(partial(self._past_rate_limits, outgoing, bound, recorder), recorder)

        return await self.in_its_dialect(ask, request, recorder)

    async def in_its_dialect(
        self, ask: Callable[[Request, Bound], Awaitable[Response]], request: Request, recorder: Recorder
    ) -> Response:
        """What `ask` returns for the request as it is sent and the most tokens that it can take. Where the endpoint
        refuses a parameter, it is asked again without."""
        while True:
            dialect = self.outgoing.dialect
            try:
                outgoing, bound = self.outgoing(request, recorder.seed)
                return await in_text(await ask(outgoing, bound))
            except LM15Error as error:
                if recorder.stopping or not self.outgoing.learned(error, dialect):
                    raise

    async def retried(self, ask: Callable[[], Awaitable[Response]], recorder: Recorder) -> Response:
        """What `ask` returns, repeated after errors that may pass, as often as the settings say."""
        failures = 0
        while True:
            try:
                return await ask()
            except (LM15Error, NotReached) as error:
                failures += 1
                if failures > self.config.retries or recorder.stopping or not self._worth_retrying(error):
                    raise
                seconds = self.wait(error, failures)
            await asyncio.sleep(seconds)

    @staticmethod
    def wait(error: BaseException, failures: int) -> float:
        """Seconds after so many failures, the last one by `error`: exponential with full jitter; after a Retry-After,
        that plus a little; at most LONGEST_PAUSE."""
        wait = random.uniform(0, min(30, 0.5 * 2 ** (failures - 1)))
        retry_after: float | None = getattr(error, "retry_after", None)
        return min(LONGEST_PAUSE, retry_after + 0.2 * wait) if retry_after else wait

    def _worth_retrying(self, error: BaseException) -> bool:
        return self.answered if isinstance(error, NotReached) else is_transient(error)

    async def _past_rate_limits(self, request: Request, bound: Bound, recorder: Recorder) -> Response:
        """One attempt, repeated for as long as the rate limit refuses it: no row is lost to a 429."""
        connections, refusals = self._connections(), 0
        limits = connections.limits
        while True:
            try:
                return await self._attempt(connections, request, bound, recorder, again=refusals > 0)
            except (LM15Error, NotReached) as error:
                if recorder.stopping:
                    raise
                if not is_rate_limit(error):
                    if limits.silence.lasts:
                        raise StillLimited(f"{self.endpoint} {Silent(limits.silence)}") from None
                    raise
                if limits.hopeless:
                    raise StillLimited(f"{self.endpoint} has refused everything for minutes: {error.message}") from None
                await limits.alone(seconds_alone(getattr(error, "retry_after", None), refusals))
                refusals += 1

    async def _attempt(
        self, connections: OfLoop, request: Request, bound: Bound, recorder: Recorder, again: bool
    ) -> Response:
        """Wait for a slot, reserve the worst case, send the request, and record what comes of it. `again`: the rate
        limit refused it before."""
        limits, worst = connections.limits, self.worst(bound)
        try:
            slot = await limits.acquire(bound.prompt / 4 + bound.answer, again)
        except NoSlot as error:
            raise StillLimited(f"{self.endpoint} {error}") from None
        free: Callable[[Slot], None] = limits.ended  # by which of their methods, limits learn how it went
        try:
            number = await recorder.reserve(self.model, self.endpoint, worst)
            attempt = self.sent_attempt(worst, number, bound)
            limits.sent(slot)
            try:
                response = await self._in_time(connections, request, slot)
            except BaseException as error:
                free = _after_failure(limits, error)
                if (raised := self.failed(error, attempt, recorder, left=slot.left)) is not error:
                    raise raised from None
                raise
            free = limits.went_well
            return self.finished(response, attempt, recorder)
        finally:
            free(slot)

    def worst(self, bound: Bound) -> int | None:
        """The most that a call can cost that takes at most so many tokens: picodollars; None: no price."""
        return None if self.price is None else self.price.worst(bound.prompt, bound.answer)

    def sent_attempt(self, worst: int | None, number: int, bound: Bound) -> SentAttempt:
        """An attempt that is sent now. `worst`: its reservation; `number`: of its call in the ledger."""
        # What an answer says it took is believed by max_tokens: a request for one token would make most incredible.
        most = bound.prompt, self.config.max_tokens
        fresh = sent_before(self.endpoint, self.model).fresh(bound.text)
        now = time.monotonic()
        return SentAttempt(self.model, self.endpoint, self.price, worst, number, now, most, bound.text, fresh)

    def finished(self, response: Response, attempt: SentAttempt, recorder: Recorder) -> Response:
        """Record a finished attempt. Raises AnswerCut, AnswerRefused."""
        self.answered = True
        outcome = outcome_of(response)
        if (used := attempt.used(response, self.route.provider)) is None:
            self._doubt()
        recorder.report(attempt.answered(outcome, response, used))
        if outcome == "cut" and not takes_cut():
            raise AnswerCut(f"cut at max_tokens={self.config.max_tokens}; raise it in the teacher's settings")
        if outcome == "refused":
            raise AnswerRefused("declined by the model or its content filter")
        return response

    def failed(
        self, error: BaseException, attempt: SentAttempt, recorder: Recorder, *, left: bool = True
    ) -> BaseException:
        """Record an attempt without an answer; one of which nothing has `left` is no call, and is not charged. Returns
        the error to raise: never with a key in it."""
        raised = error
        if isinstance(error, LM15Error):
            raised = error_to_raise(error, self.endpoint, self.answered)
        if left:
            recorder.report(attempt.failed(error))
        else:
            recorder.not_sent(attempt.number)
        return raised

    async def _in_time(self, connections: OfLoop, request: Request, slot: Slot) -> Response:
        """The answer, within one deadline for the whole attempt. Raises lm15's TimeoutError, a subclass of Python's, or
        NotConnected."""
        try:
            async with asyncio.timeout(self.config.timeout):
                return await self.answer_from(connections.lm, request, lambda: slot.answered)
        except LM15Error:
            raise
        except TimeoutError:
            seconds = f"in {self.config.timeout:g} s"
            if not slot.left:
                raise NotConnected(f"no connection {seconds}") from None
            raise AnswerTimeout(f"no answer {seconds}") from None

    async def answer_from(self, lm: Any, request: Request, arrived: Callable[[], bool]) -> Response:
        """The answer of `lm`, lm15's client. Raises LM15Error.

        `arrived`: whether anything has come back. lm15 takes only whole numbers in a usage, and one choice. Where an
        answer cannot be read it is read without its usage, or its other choices, since it is paid for.
        """
        reading = Reading(more=bytes_of_logprobs(self.config, request.config))
        token = current_reading.set(reading)
        try:
            while True:
                try:
                    return await read_answer(lm, request, arrived)
                except (Unreadable, UnsupportedFeatureError) as error:
                    if not self._made_readable(reading, error):
                        raise
        finally:
            current_reading.reset(token)

    def _made_readable(self, reading: Reading, error: Unreadable | UnsupportedFeatureError) -> bool:
        """Whether something could be taken out of the answer after this `error`: lm15 then reads it without."""
        several = isinstance(error, UnsupportedFeatureError)
        shorter = (first_choice if several else without_usage)(reading.instead or reading.body)
        if shorter is None:
            return False
        reading.instead = shorter
        if not several:
            self._doubt()
        return True

    def _doubt(self) -> None:
        """Say, once, that the usage of this model's answers is not to be believed."""
        if not self._doubted:
            log.warning(
                "%s at %s: an answer reported impossible token counts; such calls are charged at their worst case",
                self.model,
                self.endpoint,
            )
        self._doubted = True

    def _connections(self) -> OfLoop:
        """The connections of the running event loop, made at its first call."""
        loop = asyncio.get_running_loop()
        if (connections := self._of_loop.get(loop)) is None:
            config = self.config
            limits = (
                self.shares_limits_with._connections().limits
                if self.shares_limits_with is not None
                else RateLimits(
                    config.concurrency or 32,
                    config.requests_per_minute,
                    config.tokens_per_minute,
                    name=self.endpoint,
                    probes=min(PROBES, config.retries + 2),
                )
            )
            http = self.route.connections()
            watched = WatchedTransport(http, limits, longest_answer(config))
            connections = self._of_loop[loop] = OfLoop(self.route.async_lm(watched), http, limits)
        return connections

    async def aclose(self) -> None:
        """Close this loop's connections."""
        if (connections := self._of_loop.pop(asyncio.get_running_loop(), None)) is not None:
            await connections.http.aclose()


def _after_failure(limits: RateLimits, error: BaseException) -> Callable[[Slot], None]:
    """Which method of `limits` ends the slot of an attempt that failed with `error`."""
    if is_rate_limit(error) or is_overload(error):
        return partial(limits.refused, retry_after=getattr(error, "retry_after", None))
    if isinstance(error, NotConnected):
        return limits.not_reached
    if isinstance(error, TransportError | AnswerTimeout):
        return partial(limits.unanswered, why=one_line(error, 100))
    return limits.ended


async def read_answer(lm: Any, request: Request, arrived: Callable[[], bool]) -> Response:
    """The answer of `lm`. Raises LM15Error.

    lm15 fails on JSON of an unexpected shape: if an answer has `arrived`, that is the endpoint's fault (Unreadable),
    and costs one row only.
    """
    try:
        answer: Response = await lm.complete(request)
    except LM15Error:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if not arrived():
            raise
        raise Unreadable(f"its answer cannot be read: {type(error).__name__}: {one_line(error, 120)}") from None
    return answer


@dataclass
class OfLoop:
    """What each event loop has for itself: lm15's client, connections, and limits whose waits belong to the loop."""

    lm: Any
    http: Connections
    limits: RateLimits


@dataclass(eq=False)
class Server:
    """One address: its engine, whether it is down, and how many requests are in flight there."""

    engine: TeacherEngine
    outage: Outage
    in_flight: int = 0

    @property
    def shown(self) -> str:
        return f"{self.engine.model} at {self.engine.endpoint}"

    async def complete(self, request: Request) -> Response:
        """As `TeacherEngine.complete`. Raises NotHere for an error after which another server may answer."""
        was_down, self.in_flight = self.outage.down, self.in_flight + 1
        try:
            response = await self.engine.complete(request)
        except (LM15Error, LMError) as error:
            if not self._is_own(error):
                self.outage.answered(self.shown, was_down)
                raise
            if current_recorder.get().stopping:  # no other may be asked any more
                raise
            self.outage.went_down(self.shown, str(getattr(error, "message", "") or error))
            raise NotHere(error) from error
        except BaseException:
            self.outage.probe_again()
            raise
        finally:
            self.in_flight -= 1
        self.outage.answered(self.shown, was_down)
        return response

    def _is_own(self, error: LM15Error | LMError) -> bool:
        """Whether `error` is this server's, and no fault of the request or of the settings.

        What would stop a run (a key that is refused, an unknown model) is an outage once the server has answered. Until
        then it is a mistake, and the error names the address.
        """
        known = wrap_error(error, model=self.engine.model) if isinstance(error, LM15Error) else error
        if not stop_hint(known):
            return isinstance(error, StillLimited) or row_error_of(known) in {NoAnswer, NoConnection}
        if not self.engine.answered and isinstance(error, LM15Error):
            error.message = f"{self.engine.endpoint}: {error.message}"
        return self.engine.answered


class NotHere(Exception):
    """A server did not answer; another may. `error`: what it said."""

    def __init__(self, error: LM15Error | LMError) -> None:
        super().__init__(str(error))
        self.error = error


class BalancedEngine:
    """The asynchronous engine of one model at several addresses."""

    def __init__(self, engines: Sequence[TeacherEngine], clock: Callable[[], float] = time.monotonic) -> None:
        self.engines = engines
        self._servers = [Server(engine, Outage(clock)) for engine in engines]

    async def complete(self, request: Request) -> Response:
        """As `TeacherEngine.complete`, by the first server that answers; raises the last one's error if none does."""
        failure: NotHere | None = None
        for server in self._candidates(current_recorder.get().seed or 0):
            try:
                return await server.complete(request)
            except NotHere as error:
                failure = error
        assert failure is not None
        raise failure.error from None

    def _candidates(self, seed: int) -> Iterator[Server]:
        """The servers that are up, each once: next the one with the fewest requests in flight, of several the seed's.
        If all are down, one of them all the same."""
        count, tried = len(self._servers), list[Server]()
        turns = [self._servers[(place + seed) % count] for place in range(count)]
        while True:
            order = sorted(turns, key=lambda server: server.in_flight)
            server = next((one for one in order if one not in tried and one.outage.may_ask()), None)
            if server is None and tried:
                return
            tried.append(server or order[0])
            yield tried[-1]

    async def aclose(self) -> None:
        """Close this loop's connections."""
        for engine in self.engines:
            await engine.aclose()
