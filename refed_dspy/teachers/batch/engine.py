"""A teacher behind batches: the engine of a teacher whose mode is `batch`, `mixed` or `folder`.

Programs do not notice. Each call waits for its answer like any other, in a batch with all that wait at the time. Its
row in the ledger says `sent` until then, so a start after a kill finds it and waits for the same batch.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from dspy.lm15 import LM15Error, Message, Request, Response
from dspy.utils.exceptions import LMError

from refed_dspy.config.teacher import BatchConfig, TeacherConfig
from refed_dspy.errors import RefedError, one_line
from refed_dspy.ledger.batches import BatchLog
from refed_dspy.ledger.recorder import Recorder, current_recorder
from refed_dspy.ledger.statements import UNUSED
from refed_dspy.programs.lm_errors import BatchOutOfReach, NotReached, WorkEnds
from refed_dspy.records import Call
from refed_dspy.teachers.batch.service import (
    CANCELLED,
    BatchService,
    PendingRequest,
    Straggler,
    Unanswered,
    current_request,
    open_service,
)
from refed_dspy.teachers.batch.tracker import BatchTracker
from refed_dspy.teachers.engine import TeacherEngine, read_answer
from refed_dspy.teachers.outcomes import SentAttempt, is_free
from refed_dspy.teachers.prices import Price
from refed_dspy.teachers.requests import Bound
from refed_dspy.teachers.route import Route
from refed_dspy.teachers.transport import CannedResponse, Reading, current_reading
from refed_dspy.teachers.usage import Used, text_of_answer, used_tokens

LONGEST_WAIT = 60.0
"""A batch waits at most so many times `quiet` for calls that are in flight elsewhere."""
_FEWEST = "word " * 32
_ANY = Request(model="-", messages=(Message.user("-"),))
"""A request with which an answer is read whose own is not known any more."""
STRAGGLERS_AT_ONCE = 32
"""At most so many stragglers of mode `mixed` are asked at once."""


class BatchCollector:
    """Collects the requests of one event loop for one batch tracker."""

    def __init__(
        self, config: BatchConfig, tracker: BatchTracker, service: BatchService, batch_log: BatchLog, *, mixed: bool
    ) -> None:
        """`tracker` may be shared with other engines; `service` sends what is collected here. `mixed`: a few requests
        left over are to be asked outside a batch (Straggler)."""
        self.config, self.tracker, self.service, self.log, self.mixed = config, tracker, service, batch_log, mixed
        tracker.join(service)
        self._queue: list[PendingRequest] = []
        self._bytes = 0
        self._first = self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._was_busy = False
        """Whether calls were in flight elsewhere at the last look: their next requests may be on the way here."""

    # --- as a transport

    @asynccontextmanager
    async def stream(self, request: Any) -> AsyncIterator[CannedResponse]:
        """The answer to `current_request`. Raises Straggler, Unanswered, and what the service raises."""
        pending, reading = current_request.get(), current_reading.get()
        if reading is not None and reading.instead is not None:
            yield CannedResponse(200, reading.instead)
            return
        assert pending is not None, "a batch engine sends nothing without a pending request"
        self.log.park(1)
        try:
            if not pending.held:
                self._join(pending, request)
            answer: Mapping[str, Any] = json.loads(await pending.answer)
        finally:
            self.log.park(-1)
        body = json.dumps(answer["body"]).encode()
        if reading is not None:
            reading.body = body
        yield CannedResponse(int(answer["status"]), body)

    # --- collecting

    def _join(self, pending: PendingRequest, request: Any) -> None:
        pending.service = self.service
        pending.line = self.service.line(pending.number, request)
        if self._bytes + len(pending.line) > min(self.config.megabytes * 1e6, self.service.most_bytes):
            self._flush()
        self._queue.append(pending)
        self._bytes += len(pending.line)
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        self._first = self._first or self._last
        if len(self._queue) >= self.tracker.most:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(self.config.quiet, self._look)

    def _look(self) -> None:
        """Send what was collected, if no more requests seem to come."""
        self._timer = None
        if not self._queue:
            return
        loop, quiet = asyncio.get_running_loop(), self.config.quiet
        still_quiet = self._last + quiet - loop.time()
        busy, late = self.log.in_flight_elsewhere > 0, loop.time() - self._first >= LONGEST_WAIT * quiet
        if still_quiet > 0 or ((busy or self._was_busy) and not late):
            self._timer = loop.call_later(still_quiet if still_quiet > 0 else quiet, self._look)
            self._was_busy = busy
            return
        self._flush(last=True)

    def _flush(self, *, last: bool = False) -> None:
        pending_requests, self._queue = [pending for pending in self._queue if not pending.answer.done()], []
        self._bytes, self._first = 0, 0.0
        if self.log.stopping:  # the run is ending: nothing begins
            for pending in pending_requests:
                pending.answer.cancel()
            return
        if self.mixed and last and len(pending_requests) <= self.config.stragglers:
            for pending in pending_requests:
                pending.answer.set_exception(Straggler())
            return
        self.tracker.submit(pending_requests)

    async def aclose(self) -> bool:
        """Stop collecting. Batches under way go on at the service, and the log has them. Returns whether nobody else
        follows them here."""
        if self._timer is not None:
            self._timer.cancel()
        return await self.tracker.leave()


@dataclass
class _PerLoop:
    """What one event loop and one log have of their own: the collector, and lm15's client over it."""

    collector: BatchCollector
    lm: Any
    in_flight: int = 0
    """Calls that wait for an answer now."""


class BatchEngine(TeacherEngine):
    """The asynchronous engine for a model in batches, at the batch price. It does not use `shares_limits_with`."""

    def __init__(self, config: TeacherConfig, route: Route, price: Price | None, plain: Price | None) -> None:
        """`price`: in a batch; `plain`: outside a batch, as mode `mixed` makes some calls."""
        super().__init__(config, route, price)
        self._logs_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _PerLoop]] = WeakKeyDictionary()
        at_once = min(STRAGGLERS_AT_ONCE, config.concurrency or STRAGGLERS_AT_ONCE)
        alone = config.model_copy(update={"concurrency": at_once, "mode": "interactive"})
        self.alone = TeacherEngine(alone, route, plain) if config.mode == "mixed" else None

    async def complete(self, request: Request) -> Response:
        """The whole answer, when its batch has ended.

        Raises LM15Error after the last attempt, AnswerCut, AnswerRefused, NoBatches, BatchRejected, WorkEnds, and
        whatever the recorder raises.
        """
        try:
            return await self._in_batch(request)
        except Straggler:
            assert self.alone is not None
            return await self.alone.complete(request)

    async def _in_batch(self, request: Request) -> Response:
        """The answer from a batch, repeated as `wait` says. Raises Straggler where a batch is not worth it."""
        recorder = current_recorder.get()
        cancelled: list[Unanswered] = []

        async def ask(outgoing: Request, bound: Bound) -> Response:
            attempt = partial(self._attempt_in_batch, outgoing, bound, recorder, cancelled)
            return await self.retried(attempt, recorder)

        return await self.in_its_dialect(ask, request, recorder)

    async def _attempt_in_batch(
        self, request: Request, bound: Bound, recorder: Recorder, cancelled: list[Unanswered]
    ) -> Response:
        """One attempt, with what this loop has for the recorder's batch log. `cancelled`: those attempts of the request
        whose batch a person cancelled at the service."""
        per_loop = self._per_loop(recorder)
        per_loop.in_flight += 1
        try:
            return await self._attempt_with(per_loop, request, bound, recorder, cancelled)
        finally:
            per_loop.in_flight -= 1

    async def _attempt_with(
        self, per_loop: _PerLoop, request: Request, bound: Bound, recorder: Recorder, cancelled: list[Unanswered]
    ) -> Response:
        """One attempt: the pending request of an earlier start, or a new one."""
        worst = self.worst(bound)
        number = recorder.adopt(self.endpoint, self.model)
        if number is not None:
            pending = PendingRequest(number, held=True)
            per_loop.collector.tracker.expect(pending)
        else:
            number = await recorder.reserve(self.model, self.endpoint, worst, batched=True)
            pending = PendingRequest(number)
        attempt = self.sent_attempt(worst, pending.number, bound)
        try:
            response = await self._answered(per_loop, request, pending)
        except Straggler:
            recorder.not_sent(pending.number)
            raise
        except BaseException as error:
            self.answered = self.answered or pending.came
            raised = self._unanswered(error, pending, attempt, recorder)
            if (raised := self._check_cancelled(raised, cancelled)) is not error:
                raise raised from (None if isinstance(error, LMError | LM15Error) else error)
            raise
        return self.finished(response, attempt, recorder)

    async def _answered(self, per_loop: _PerLoop, request: Request, pending: PendingRequest) -> Response:
        """The answer to `pending` through lm15's client, as `current_request` for the transport."""
        token = current_request.set(pending)
        try:
            return await self.answer_from(per_loop.lm, request, pending.answer.done)
        finally:
            current_request.reset(token)

    def _unanswered(
        self, error: BaseException, pending: PendingRequest, attempt: SentAttempt, recorder: Recorder
    ) -> BaseException:
        """Settle a call without an answer, unless one may still come. Returns the error to raise."""
        cancelled = not isinstance(error, Exception)  # then an answer that is here is read by the next call
        if pending.billed or (pending.came and not cancelled):
            return self.failed(error, attempt, recorder)
        if not pending.sent:
            recorder.not_sent(pending.number)
            return error
        recorder.let_go(pending.number)
        if cancelled or isinstance(error, WorkEnds | RefedError):
            return error
        return BatchOutOfReach(  # it runs and is billed: no other teacher may be asked instead
            f"a batch under way at {self.endpoint} gives no answer ({one_line(error, 150)}); fix that (the key "
            "in api_key_env, the account, api_base) and start again: the batch is in the ledger"
        )

    def _check_cancelled(self, error: BaseException, cancelled: list[Unanswered]) -> BaseException:
        """A person who cancels a batch at the service wants to stop: a request is not sent a third time. Returns the
        error to raise."""
        if not isinstance(error, Unanswered) or error.why != CANCELLED:
            return error
        cancelled.append(error)
        if len(cancelled) < 2:
            return error
        return WorkEnds(f"the batch was cancelled twice at {self.endpoint}; nothing more is sent in this start")

    @staticmethod
    def wait(error: BaseException, failures: int) -> float:
        """None, unless nothing could be sent: a request that waits misses the others' batch, for hours."""
        return TeacherEngine.wait(error, failures) if isinstance(error, NotReached) else 0.0

    def _per_loop(self, recorder: Recorder) -> _PerLoop:
        of_log = self._logs_of_loop.setdefault(asyncio.get_running_loop(), {})
        batch_log = recorder.batches
        assert batch_log is not None, "a batch is in the ledger before it is made"
        if (per_loop := of_log.get(id(batch_log))) is None:
            service = open_service(self.config, self.route)
            names = self.endpoint, self.model
            if (tracker := batch_log.trackers.get(names)) is None:
                tracker = batch_log.trackers[names] = BatchTracker(self.config.batch, service, batch_log, names)
            collector = BatchCollector(self.config.batch, tracker, service, batch_log, mixed=self.alone is not None)
            per_loop = of_log[id(batch_log)] = _PerLoop(collector, self.route.async_lm(collector))
        return per_loop

    async def aclose(self) -> None:
        """Stop following this loop's batches, and record the answers that nobody asked for. Batch logs with calls that
        still wait (of another run, say) are left alone."""
        of_log = self._logs_of_loop.setdefault(asyncio.get_running_loop(), {})
        for log_id in [log_id for log_id, per_loop in of_log.items() if not per_loop.in_flight]:
            if (closed := of_log.pop(log_id, None)) is None:
                continue  # another run ended while the one before this was being closed
            collector = closed.collector
            if not await collector.aclose():
                continue  # another engine of this model here may still want these answers
            for number, text in collector.log.unclaimed(*collector.tracker.names).items():
                if (used := await self._used(closed.lm, **json.loads(text))) is not None:
                    read, cached, written, completion = (count or 0 for count in used)
                    cost = None if self.price is None else self.price.cost(read, cached, written, completion)
                    call = Call(self.model, self.endpoint, UNUSED, 0.0, read, cached, completion, cost, number)
                    collector.log.settle(call)
            collector.log.tidy()
        if self.alone is not None:
            await self.alone.aclose()

    async def _used(self, lm: Any, status: int, body: Any, **_: Any) -> Used | None:
        """The tokens of an answer that nobody asked for, an error none; None where it does not say them, or its texts
        rule out what it says."""
        if is_free(status) and "content_filter" not in json.dumps(body):
            return Used(0, 0, 0, 0)
        token = current_reading.set(Reading(instead=json.dumps(body).encode()))
        try:
            response = await read_answer(lm, _ANY, lambda: True)
        except LM15Error:
            return None
        finally:
            current_reading.reset(token)
        used = used_tokens(self.route.provider, response.usage)
        if used.prompt is None or used.completion is None:
            return None
        # Its prompt is not here, but no chat has fewer tokens than so many words.
        return used.raised(_FEWEST, "", text_of_answer(response))
