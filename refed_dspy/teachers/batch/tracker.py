"""Follows the batches of one endpoint and model, from the upload of their requests to the last of their answers."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from dspy.utils.exceptions import LMAuthError, LMBillingError

from refed_dspy.config.keys import without_keys
from refed_dspy.config.teacher import BatchConfig
from refed_dspy.errors import one_line
from refed_dspy.ledger.batches import BatchLog, SentBatch
from refed_dspy.programs.lm_errors import BatchRejected, NoBatches, Redirected, WorkEnds
from refed_dspy.teachers.batch.service import (
    ENDED,
    AnswerReader,
    BatchService,
    Lines,
    NoRoom,
    PendingRequest,
    ServiceBatch,
    Unanswered,
)

log = logging.getLogger("refed_dspy.batches")
SMALL = 10
"""A batch of at most so many requests is not halved any more: it waits until the service's queue has room."""
CHUNK = 500
"""Answers that are written in one transaction."""
CHUNK_CHARACTERS = 8_000_000
"""A chunk with more is written, too."""
FIRST_LOOK = 1.0
"""Seconds after which a batch is first looked at."""


class BatchTracker:
    """Sends pending requests to the service of one endpoint and model, and brings their answers: for one event loop and
    one batch log, and for all engines of that model: two would take each other's batches for an earlier start's."""

    def __init__(self, config: BatchConfig, service: BatchService, batch_log: BatchLog, names: tuple[str, str]) -> None:
        """`names`: endpoint and model as the log has them. Batches of earlier starts are followed from here on."""
        self.config, self.service, self.log, self.names = config, service, batch_log, names
        self._services = [service]
        """The services of all collectors that share it: a batch is followed with the key it was sent with."""
        self._users = 0
        self.most = min(config.requests, service.most_requests)
        """Requests that go into one batch."""
        self._waiting: dict[int, PendingRequest] = {}
        """Call number → pending request, of those whose batch is being sent or is under way."""
        self._abandoned: dict[int, Exception] = {}
        """Call number → error, of calls in batches that are no longer followed."""
        self._one_at_a_time: asyncio.Semaphore | None = None
        """Once the service's queue was full: batches are sent one after the other."""
        self._tasks: set[asyncio.Task[None]] = set()
        for batch in batch_log.under_way(*names):
            service.reached = True  # an earlier start reached it: retry while it cannot be reached
            self._start(self._resume(batch))

    def expect(self, pending: PendingRequest) -> None:
        """Wait for a call that an earlier start sent. Must be called at the moment in which the call is adopted, or its
        batch could end unnoticed."""
        pending.sent = True
        if (text := self.log.answer(pending.number)) is not None:
            pending.answer.set_result(text)
        elif (error := self._abandoned.get(pending.number)) is not None:
            pending.answer.set_exception(error)
        else:
            self._waiting[pending.number] = pending

    def submit(self, pending_requests: Sequence[PendingRequest]) -> None:
        """Send the requests in as few batches as the limits allow; each gets its answer, or an error."""
        for first in range(0, len(pending_requests), self.most):
            self._start(self._send(pending_requests[first : first + self.most]))

    def join(self, service: BatchService) -> None:
        """One more collector sends its requests through this tracker, until it leaves."""
        self._users += 1
        if service not in self._services:
            self._services.append(service)

    async def leave(self) -> bool:
        """One collector less. Returns whether it was the last one; then no batch is followed any more."""
        self._users -= 1
        if self._users:
            return False
        self.log.trackers.pop(self.names, None)
        await self.aclose()
        return True

    async def aclose(self) -> None:
        """Stop following. Batches under way go on at the service, and the log has them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for service in self._services:
            await service.aclose()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, pending_requests: Sequence[PendingRequest]) -> None:
        """Send the requests as one batch, and follow it to its end. An error is set on all that wait."""
        self._waiting.update((pending.number, pending) for pending in pending_requests)
        try:
            async with self._one_at_a_time or nullcontext():
                service = pending_requests[0].service or self.service
                if (batch := await self._make(pending_requests, service)) is not None:
                    await self._follow(batch, service)
        except BatchRejected as error:
            self._abandon([pending.number for pending in pending_requests], self._refusal(error.message or str(error)))
        except Exception as error:  # noqa: BLE001 — raised again by each call that waits, at least one
            self._abandon([pending.number for pending in pending_requests], error)

    async def _prepared(
        self, pending_requests: Sequence[PendingRequest], service: BatchService
    ) -> tuple[str, Sequence[PendingRequest]]:
        """(What the requests are prepared as, the requests): those that are still waited for, none where the start is
        ending."""
        while waiting := [pending for pending in pending_requests if not pending.answer.done()]:
            if self.log.stopping:
                break
            prepared = await service.prepare(waiting)
            if not any(pending.answer.done() for pending in waiting) and not self.log.stopping:
                return prepared, waiting
        for pending in waiting:
            pending.answer.cancel()
        return "", ()

    async def _make(self, pending_requests: Sequence[PendingRequest], service: BatchService) -> SentBatch | None:
        """The batch, made at the service and logged; None where it is not to begin any more.

        It is logged before it is made: after a kill or a lost answer, it can be found by its nonce.
        """
        prepared, waiting = await self._prepared(pending_requests, service)
        for pending in pending_requests:
            if pending.answer.done():
                self._waiting.pop(pending.number, None)
        if not waiting:
            return None
        batch = self.log.begin(*self.names, uuid.uuid4().hex, [pending.number for pending in waiting])
        for pending in waiting:
            pending.sent = True
        try:
            made = await service.create(prepared, waiting, batch.nonce, batch.created)
        except NoRoom:
            await self._make_room(batch)
            return None
        except BatchRejected as error:
            refusal = self._refusal(error.message or str(error))
            self._without_answer(batch, "refused", refusal, batch.numbers)
            raise refusal from None
        except (NoBatches, Redirected, LMAuthError, LMBillingError) as error:
            self._without_answer(batch, "refused", error, batch.numbers)
            raise
        self.log.named(batch, made.name)
        log.info("batch %s: %d requests sent to %s", made.name, len(waiting), self.names[0])
        return replace(batch, name=made.name)

    async def _resume(self, batch: SentBatch) -> None:
        """Follow a batch of an earlier start to its end. One without a name is looked for at the service first."""
        try:
            name = batch.name
            if name is None:
                existing = await self.service.find(batch.nonce, batch.created, len(batch.numbers))
                if existing is None:
                    self._without_answer(batch, "not sent", Unanswered("it was never created"), batch.numbers)
                    return
                name = existing.name
                self.log.named(batch, name)
            await self._follow(replace(batch, name=name), self.service)
        except Exception as error:  # noqa: BLE001 — raised again by each call that waits, or will
            self._abandon(batch.numbers, error)

    async def _follow(self, batch: SentBatch, service: BatchService) -> None:
        """Wait for the batch's end; deliver its answers, and set an error on the calls without one."""
        service.known.add(str(batch.name))
        end = await self._end(batch, service)
        if end.status == "failed":
            await self._failed(batch, end)
            return
        reader = AnswerReader(set(batch.numbers), service.outcome)
        for file in end.files:
            await service.read(file, len(batch.numbers), partial(self._deliver_lines, reader))
        left = reader.left
        # Requests that were not executed cost nothing. Answers that were lost or garbled may have been billed.
        all_told = end.status != "completed" and not reader.unreadable and not end.withheld
        lost = set[int]() if all_told else left - reader.not_executed
        self._without_answer(batch, end.status, Unanswered(end.status), left - lost, lost)
        log.info("batch %s: %s, %d answered, %d not", batch.name, end.status, len(batch.numbers) - len(left), len(left))

    async def _end(self, batch: SentBatch, service: BatchService) -> ServiceBatch:
        """The batch as it ended."""
        wait, logged = min(FIRST_LOOK, self.config.poll), ""
        while True:
            now = await service.look(str(batch.name))
            if now.status in ENDED and now.whole:
                return now
            if now.total and logged != (state := f"{now.status}, {now.done} of {now.total} done"):
                logged = state
                log.info("batch %s: %s", batch.name, state)
            await asyncio.sleep(wait)
            wait = min(self.config.poll, 1.5 * wait)

    async def _failed(self, batch: SentBatch, end: ServiceBatch) -> None:
        """The service executed nothing of the batch. One that its queue had no room for is sent again, in halves."""
        if end.no_room:
            await self._make_room(batch)
            return
        reason = one_line(without_keys(end.why), 200)
        error = self._refusal(f"batch {batch.name} was refused by {self.names[0]}: {reason}")
        self._without_answer(batch, "failed", error, batch.numbers)

    def _refusal(self, message: str) -> BatchRejected | WorkEnds:
        """The error for a whole batch that was refused. Where the model never answered it is a mistake in the settings;
        later the run ends, since another teacher of a pool may be dearer."""
        if not self.log.has_answered(*self.names):
            return BatchRejected(message)
        return WorkEnds(f"{message} — none of that batch was paid for; fix that or set mode: interactive")

    async def _make_room(self, batch: SentBatch) -> None:
        """The service's queue had no room for the batch: send smaller ones, one after the other."""
        pending_requests = [
            pending for number in batch.numbers if (pending := self._waiting.get(number)) is not None and pending.line
        ]
        again = {pending.number for pending in pending_requests}
        self.log.ended(batch, "no room", batch.numbers)
        self._unsend(batch.numbers)
        others = [number for number in batch.numbers if number not in again]
        self._fail(others, Unanswered("the service's queue is full"))
        if self._one_at_a_time is None:
            self._one_at_a_time = asyncio.Semaphore(1)
        if len(batch.numbers) <= SMALL:
            log.warning("batch %s: no room at %s; trying again later", batch.name or "", self.names[0])
            await asyncio.sleep(10 * self.config.poll)
        self.most = min(self.most, max(SMALL, min(self.most, len(batch.numbers)) // 2))
        log.warning("batch %s: no room at %s; continuing with batches of %d", batch.name, self.names[0], self.most)
        self.submit([pending for pending in pending_requests if not pending.answer.done()])

    async def _deliver_lines(self, reader: AnswerReader, lines: Lines) -> None:
        """Log the answers, chunk by chunk, and wake the calls that wait for them."""
        chunk: dict[int, str] = {}
        size = 0
        async for line in lines:
            if (answer := reader.answer(line)) is None or answer[0] in chunk:
                continue
            number, text = answer
            chunk[number] = text
            size += len(text)
            if len(chunk) == CHUNK or size > CHUNK_CHARACTERS:
                self._deliver(reader, chunk)
                chunk, size = {}, 0
                await asyncio.sleep(0)  # the calls that were woken go first
        self._deliver(reader, chunk)

    def _deliver(self, reader: AnswerReader, answers: Mapping[int, str]) -> None:
        if answers:
            self.log.arrived(answers)
        reader.left.difference_update(answers)
        for number, text in answers.items():
            pending = self._waiting.pop(number, None)
            if pending is not None and not pending.answer.done():
                pending.answer.set_result(text)

    def _without_answer(
        self, batch: SentBatch, how: str, error: Exception, free: Iterable[int], lost: Iterable[int] = ()
    ) -> None:
        """The batch has ended without an answer to these calls: `free` ones cost nothing, `lost` ones may have."""
        free, lost = sorted(free), sorted(lost)
        self.log.ended(batch, how, free, lost)
        self._unsend(free)
        self._fail(free, error)
        self._fail(lost, Unanswered(how, billed=True))

    def _abandon(self, numbers: Sequence[int], error: Exception) -> None:
        """The batch of these calls is no longer followed: `error` goes to the calls that wait, and to later ones."""
        self._abandoned.update(dict.fromkeys(numbers, error))
        self._fail(numbers, error)

    def _unsend(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if (pending := self._waiting.get(number)) is not None:
                pending.sent = False

    def _fail(self, numbers: Iterable[int], error: Exception) -> None:
        for number in numbers:
            pending = self._waiting.pop(number, None)
            if pending is not None and not pending.answer.done():
                pending.answer.set_exception(error)
