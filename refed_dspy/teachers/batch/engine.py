"""A teacher behind a provider's batches: the engine that a run asks where its teacher's mode is `batch` or `mixed`.

Programs do not notice. Each call waits for its answer like any other, in a batch with all that wait at the time; its
row in the books says `sent` until then, so a start after a kill finds it, and waits where the last one waited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from dspy.lm15 import LM15Error, ProviderError, Request, Response
from dspy.utils.exceptions import LMError
from tenacity import AsyncRetrying, RetryCallState

from refed_dspy.config.loading import TeacherConfig
from refed_dspy.errors import RefedError, one_line
from refed_dspy.ledger.attempt import Attempt
from refed_dspy.ledger.recorder import Recorder, current_recorder
from refed_dspy.ledger.statements import UNUSED
from refed_dspy.programs.lm_errors import BatchOutOfReach, NotReached, WorkEnds
from refed_dspy.records import Call
from refed_dspy.teachers.batch.collector import BatchCollector
from refed_dspy.teachers.batch.request import (
    CANCELLED,
    NullBatchLog,
    PendingRequest,
    Straggler,
    Unanswered,
    current_request,
)
from refed_dspy.teachers.batch.service import BatchService
from refed_dspy.teachers.batch.tracker import BatchTracker, tracker_of
from refed_dspy.teachers.engine import TeacherEngine, after_first
from refed_dspy.teachers.outcomes import SentAttempt, reserved
from refed_dspy.teachers.prices import Price
from refed_dspy.teachers.route import Route

BY_THEMSELVES = 32
"""Stragglers of a mixed mode that are asked at once."""


@dataclass
class _Story:
    """What became of one question so far."""

    cancelled: int = 0
    """Batches with it that a person called off at the service."""


@dataclass
class _PerLoop:
    """What one event loop and one log have of their own: the batcher, and lm15's client over it."""

    batcher: BatchCollector
    lm: Any
    in_flight: int = 0
    """Calls that are being made."""


class BatchEngine(TeacherEngine):
    """The asynchronous door to a model in batches, at the price of batches. `beside` is of no use to it."""

    def __init__(self, config: TeacherConfig, route: Route, price: Price | None, plain: Price | None) -> None:
        """`price`: in a batch; `plain`: of a call by itself, as a mixed mode makes some."""
        super().__init__(config, route, price)
        self._halls: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _PerLoop]] = WeakKeyDictionary()
        at_once = min(BY_THEMSELVES, config.concurrency or BY_THEMSELVES)
        alone = config.model_copy(update={"concurrency": at_once, "mode": "interactive"})
        self.alone = TeacherEngine(alone, route, plain) if config.mode == "mixed" else None

    async def complete(self, request: Request) -> Response:
        """The whole answer, when its batch has ended.

        Raises LM15Error after the last attempt, AnswerCut, AnswerRefused, NoBatches, BatchRejected, WorkEnds, and
        whatever the books raise.
        """
        try:
            return await self._patiently(request)
        except Straggler:
            assert self.alone is not None
            return await self.alone.complete(request)

    async def _patiently(self, request: Request) -> Response:
        """The answer of whichever batch has it. Raises Straggler where a batch is not worth it."""
        recorder = current_recorder()
        outgoing, prompt_bound = self.outgoing(request, recorder.seed)
        ask = partial(self._seated, outgoing, prompt_bound, recorder, _Story())
        try:
            return await ask()
        except (LM15Error, NotReached) as error:
            first = error
        return await AsyncRetrying(**self.retrying(recorder))(after_first(first, ask))

    async def _seated(self, request: Request, prompt_bound: int, recorder: Recorder, story: _Story) -> Response:
        """One attempt: the place in a batch that an earlier start took, or a new one."""
        per_loop = self._per_loop(recorder)
        per_loop.in_flight += 1
        try:
            return await self._in(per_loop, request, prompt_bound, recorder, story)
        finally:
            per_loop.in_flight -= 1
            if recorder.batches is None and not per_loop.in_flight:  # nobody else will close it
                await self.aclose()

    async def _in(
        self, per_loop: _PerLoop, request: Request, prompt_bound: int, recorder: Recorder, story: _Story
    ) -> Response:
        worst = self.worst(prompt_bound)
        number = recorder.adopt(self.endpoint, self.model)
        if number is not None:
            pending = PendingRequest(number, held=True)
            per_loop.batcher.tracker.expect(pending)
        else:
            attempt = Attempt(self.model, self.endpoint, worst, batched=True)
            pending = PendingRequest(await reserved(recorder, attempt) or per_loop.batcher.next_number())
        receipt = self.receipt(worst, pending.number)
        try:
            response = await self._answered(per_loop, request, pending)
        except Straggler:
            recorder.not_sent(pending.number)
            raise
        except BaseException as error:
            self.answered = self.answered or pending.came
            telling = self._unanswered(error, pending, receipt, recorder)
            if (telling := self._once_more(telling, story)) is not error:
                raise telling from (None if isinstance(error, LMError | LM15Error) else error)
            raise
        return self.finished(response, receipt, recorder)

    async def _answered(self, per_loop: _PerLoop, request: Request, pending: PendingRequest) -> Response:
        token = current_request.set(pending)
        try:
            answer: Response = await per_loop.lm.complete(request)
        except LM15Error:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if not pending.answer.done():
                raise
            raise ProviderError(f"its answer cannot be read: {type(error).__name__}: {one_line(error, 120)}") from None
        finally:
            current_request.reset(token)
        return answer

    def _unanswered(
        self, error: BaseException, pending: PendingRequest, receipt: SentAttempt, recorder: Recorder
    ) -> BaseException:
        """Settle a call without an answer, unless one may still come. Returns the error to raise."""
        called_off = not isinstance(error, Exception)  # then an answer that is here is read by whoever asks next
        if pending.billed or (pending.came and not called_off):
            return self.failed(error, receipt, recorder)
        if not pending.sent:
            recorder.not_sent(pending.number)
            return error
        recorder.let_go(pending.number)
        if called_off or isinstance(error, WorkEnds | RefedError):
            return error
        return BatchOutOfReach(  # it runs, and is billed: no other teacher may be asked in its place
            f"a batch under way at {self.endpoint} cannot be asked about ({one_line(error, 150)}): mend that (the key "
            "that api_key_env names, the account, api_base); the batch is in the ledger, and is fetched then"
        )

    def _once_more(self, error: BaseException, story: _Story) -> BaseException:
        """Whoever cancels a batch at the service wants to stop: the same is not sent there a third time. Returns the
        error to raise."""
        if not isinstance(error, Unanswered) or error.why != CANCELLED:
            return error
        story.cancelled += 1
        if story.cancelled < 2:
            return error
        return WorkEnds(f"the batch was cancelled at {self.endpoint} twice: nothing more is sent in this start")

    def retrying(self, recorder: Recorder) -> dict[str, Any]:
        """At once, but where nothing could be sent: what waits would be in another batch than the others, for hours."""
        settings = super().retrying(recorder)
        return {**settings, "wait": partial(_wait_for_connection, settings["wait"])}

    def _per_loop(self, recorder: Recorder) -> _PerLoop:
        halls = self._halls.setdefault(asyncio.get_running_loop(), {})
        kept = recorder.batches
        if (per_loop := halls.get(id(kept))) is None:
            batch_log = kept if kept is not None else NullBatchLog()
            service = BatchService(self.config, self.route)
            names = self.endpoint, self.model
            tracker = tracker_of(batch_log, names, lambda: BatchTracker(self.config.batch, service, batch_log, names))
            batcher = BatchCollector(self.config.batch, tracker, service, batch_log, mixed=self.alone is not None)
            per_loop = halls[id(kept)] = _PerLoop(batcher, self.route.async_lm(batcher))
        return per_loop

    async def aclose(self) -> None:
        """Let go of this loop's batches, and write down what came that nobody asked for. Where calls are being made,
        another run's say, nothing is let go of."""
        halls = self._halls.setdefault(asyncio.get_running_loop(), {})
        for name in [name for name, per_loop in halls.items() if not per_loop.in_flight]:
            batcher = halls.pop(name).batcher
            if not await batcher.aclose():
                continue  # whoever else asks this model here may still want what came
            for number, (read, written) in batcher.unused().items():
                cost = None if self.price is None else self.price.cost(read, 0, 0, written)
                batcher.log.settle(Call(self.model, self.endpoint, UNUSED, 0.0, read, 0, written, cost, number))
            batcher.log.tidy()
        if self.alone is not None:
            await self.alone.aclose()


def _wait_for_connection(wait: Callable[[RetryCallState], float], state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return wait(state) if isinstance(error, NotReached) else 0.0
