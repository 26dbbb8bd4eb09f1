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
from refed_dspy.ledger.recording import Attempt, Books, current_books
from refed_dspy.ledger.statements import UNUSED
from refed_dspy.programs.lm_errors import BatchOutOfReach, NotReached, WorkEnds
from refed_dspy.records import Call
from refed_dspy.teachers.batch.collector import Batcher
from refed_dspy.teachers.batch.request import CANCELLED, Seat, Straggler, Unanswered, Unlogged, sitting
from refed_dspy.teachers.batch.service import BatchService
from refed_dspy.teachers.batch.tracker import Courier, courier_of
from refed_dspy.teachers.engine import TeacherEngine, after_first
from refed_dspy.teachers.outcomes import Receipt, reserved
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
class _Hall:
    """What one event loop and one log have of their own: the batcher, and lm15's client over it."""

    batcher: Batcher
    lm: Any
    guests: int = 0
    """Calls that are being made."""


class BatchEngine(TeacherEngine):
    """The asynchronous door to a model in batches, at the price of batches. `beside` is of no use to it."""

    def __init__(self, config: TeacherConfig, route: Route, price: Price | None, plain: Price | None) -> None:
        """`price`: in a batch; `plain`: of a call by itself, as a mixed mode makes some."""
        super().__init__(config, route, price)
        self._halls: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _Hall]] = WeakKeyDictionary()
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
        books = current_books()
        outgoing, prompt_bound = self.outgoing(request, books.seed)
        ask = partial(self._seated, outgoing, prompt_bound, books, _Story())
        try:
            return await ask()
        except (LM15Error, NotReached) as error:
            first = error
        return await AsyncRetrying(**self.retrying(books))(after_first(first, ask))

    async def _seated(self, request: Request, prompt_bound: int, books: Books, story: _Story) -> Response:
        """One attempt: the place in a batch that an earlier start took, or a new one."""
        hall = self._hall(books)
        hall.guests += 1
        try:
            return await self._in(hall, request, prompt_bound, books, story)
        finally:
            hall.guests -= 1
            if books.batches is None and not hall.guests:  # nobody else will close it
                await self.aclose()

    async def _in(self, hall: _Hall, request: Request, prompt_bound: int, books: Books, story: _Story) -> Response:
        worst = self.worst(prompt_bound)
        number = books.adopt(self.endpoint, self.model)
        if number is not None:
            seat = Seat(number, held=True)
            hall.batcher.courier.expect(seat)
        else:
            attempt = Attempt(self.model, self.endpoint, worst, batched=True)
            seat = Seat(await reserved(books, attempt) or hall.batcher.next_number())
        receipt = self.receipt(worst, seat.number)
        try:
            response = await self._answered(hall, request, seat)
        except Straggler:
            books.not_sent(seat.number)
            raise
        except BaseException as error:
            self.answered = self.answered or seat.came
            telling = self._unanswered(error, seat, receipt, books)
            if (telling := self._once_more(telling, story)) is not error:
                raise telling from (None if isinstance(error, LMError | LM15Error) else error)
            raise
        return self.finished(response, receipt, books)

    async def _answered(self, hall: _Hall, request: Request, seat: Seat) -> Response:
        token = sitting.set(seat)
        try:
            answer: Response = await hall.lm.complete(request)
        except LM15Error:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if not seat.answer.done():
                raise
            raise ProviderError(f"its answer cannot be read: {type(error).__name__}: {one_line(error, 120)}") from None
        finally:
            sitting.reset(token)
        return answer

    def _unanswered(self, error: BaseException, seat: Seat, receipt: Receipt, books: Books) -> BaseException:
        """Settle a call without an answer, unless one may still come. Returns the error to raise."""
        called_off = not isinstance(error, Exception)  # then an answer that is here is read by whoever asks next
        if seat.billed or (seat.came and not called_off):
            return self.failed(error, receipt, books)
        if not seat.sent:
            books.not_sent(seat.number)
            return error
        books.let_go(seat.number)
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

    def retrying(self, books: Books) -> dict[str, Any]:
        """At once, but where nothing could be sent: what waits would be in another batch than the others, for hours."""
        settings = super().retrying(books)
        return {**settings, "wait": partial(_wait_for_connection, settings["wait"])}

    def _hall(self, books: Books) -> _Hall:
        halls = self._halls.setdefault(asyncio.get_running_loop(), {})
        kept = books.batches
        if (hall := halls.get(id(kept))) is None:
            remembers = kept if kept is not None else Unlogged()
            service = BatchService(self.config, self.route)
            names = self.endpoint, self.model
            courier = courier_of(remembers, names, lambda: Courier(self.config.batch, service, remembers, names))
            batcher = Batcher(self.config.batch, courier, service, remembers, mixed=self.alone is not None)
            hall = halls[id(kept)] = _Hall(batcher, self.route.async_lm(batcher))
        return hall

    async def aclose(self) -> None:
        """Let go of this loop's batches, and write down what came that nobody asked for. Where calls are being made,
        another run's say, nothing is let go of."""
        halls = self._halls.setdefault(asyncio.get_running_loop(), {})
        for name in [name for name, hall in halls.items() if not hall.guests]:
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
