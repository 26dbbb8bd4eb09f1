"""One batch after the other, from its file to the last of its answers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from dspy.utils.exceptions import LMAuthError, LMBillingError

from refed_dspy.config.teacher import BatchConfig
from refed_dspy.errors import one_line
from refed_dspy.ledger.attempt import SentBatch
from refed_dspy.programs.lm_errors import BatchRejected, NoBatches, WorkEnds
from refed_dspy.teachers.batch.request import AnyBatchLog, PendingRequest, Unanswered
from refed_dspy.teachers.batch.service import BatchService

log = logging.getLogger("refed_dspy.batches")
ENDED = {"completed", "failed", "expired", "cancelled"}
FULL = "token_limit_exceeded"
"""The service's code for a batch that has more tokens than may wait there at once."""
SMALL = 10
"""A batch of so few that is still too large for the service's queue waits until there is room."""
PIECE = 500
"""Answers that are written down in one transaction."""
FIRST_LOOK = 1.0
"""Seconds after which a batch is looked at first."""
LOOKS = 5
"""Further looks at a batch that is completed and names no file: the names may come a little later than the word."""
_NAME = re.compile(r"call-([0-9]{1,18})")


@dataclass
class _OutputReader:
    """What the files of a batch say. `left`: calls without an answer so far; `spared`: those of them that the service
    says it did not come to; `unreadable`: lines that may be anyone's."""

    left: set[int]
    spared: set[int] = field(default_factory=set)
    unreadable: int = 0


class BatchTracker:
    """Takes seats to the service of one endpoint and model, and answers back: for one event loop and one log, and for
    all engines of that model (`courier_of`)."""

    def __init__(
        self, config: BatchConfig, service: BatchService, batch_log: AnyBatchLog, names: tuple[str, str]
    ) -> None:
        """`names`: endpoint and model as the log has them. Batches of earlier starts are taken up at once."""
        self.config, self.service, self.log, self.names = config, service, batch_log, names
        self._services = [service]
        """Of all who share it: what one of them sent is followed with its own key, whoever leaves."""
        self._users = 0
        self.most = config.requests
        """Requests that go into one batch."""
        self._waiting: dict[int, PendingRequest] = {}
        """Those whose batch is being sent or is under way, by number."""
        self._lost: dict[int, Exception] = {}
        """Calls in batches that are followed no longer, and why not."""
        self._crowded: asyncio.Semaphore | None = None
        """Once the service's queue was full: one batch after the other."""
        self._tasks: set[asyncio.Task[None]] = set()
        for batch in batch_log.under_way(*names):
            service.reached = True  # it was, by an earlier start: if it is away for a moment it is waited for
            self._start(self._take_up(batch))

    def expect(self, pending: PendingRequest) -> None:
        """Wait for a call that an earlier start sent. Called in the moment in which it is claimed: else its batch
        could end unseen."""
        pending.sent = True
        if (there := self.log.answer(pending.number)) is not None:
            pending.answer.set_result(there)
        elif (why := self._lost.get(pending.number)) is not None:
            pending.answer.set_exception(why)
        else:
            self._waiting[pending.number] = pending

    def take(self, pending_requests: Sequence[PendingRequest]) -> None:
        """Send `seats` in as few batches as the limits allow; each gets its answer, or an error."""
        for first in range(0, len(pending_requests), self.most):
            self._start(self._send(pending_requests[first : first + self.most]))

    def join(self, service: BatchService) -> None:
        """One more sends its seats through this courier, and leaves one day."""
        self._users += 1
        if service not in self._services:
            self._services.append(service)

    async def leave(self) -> bool:
        """One less. Returns whether it was the last, after which nothing is followed."""
        self._users -= 1
        if self._users:
            return False
        self.log.trackers.pop(self.names, None)
        await self.aclose()
        return True

    async def aclose(self) -> None:
        """Let go. Batches under way go on at the service, and the log has them."""
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
        """Send `seats` as one batch, and see it to its end. Whatever goes wrong is told to all who wait."""
        self._waiting.update((pending.number, pending) for pending in pending_requests)
        try:
            async with self._crowded or nullcontext():
                service = pending_requests[0].service or self.service
                if (batch := await self._made(pending_requests, service)) is not None:
                    await self._follow(batch, service)
        except BatchRejected as error:
            self._lose([pending.number for pending in pending_requests], self._refusal(error.message or str(error)))
        except Exception as error:  # noqa: BLE001 — raised again by each who waits, of whom there is at least one
            self._lose([pending.number for pending in pending_requests], error)

    async def _uploaded(
        self, pending_requests: Sequence[PendingRequest], service: BatchService
    ) -> tuple[str, Sequence[PendingRequest]]:
        """A file of the requests of those who still wait, and who they are: what nobody waits for is not sent."""
        while waiting := [pending for pending in pending_requests if not pending.answer.done()]:
            if self.log.stopping:
                break
            with tempfile.TemporaryFile() as lines:
                lines.writelines(pending.line for pending in waiting)
                file = await service.upload(lines)
            if not any(pending.answer.done() for pending in waiting) and not self.log.stopping:
                return file, waiting
        return "", waiting

    async def _made(self, pending_requests: Sequence[PendingRequest], service: BatchService) -> SentBatch | None:
        """The batch, made at the service and written down; None where it is not to begin any more.

        It is written down before it is made: a kill, or an answer that is lost, leaves its nonce, by which it is found.
        """
        file, waiting = await self._uploaded(pending_requests, service)
        if not file:
            for pending in waiting:
                pending.answer.cancel()
        for pending in pending_requests:
            if pending.answer.done():
                self._waiting.pop(pending.number, None)
        if not file:
            return None
        pending_requests = waiting
        batch = self.log.begin(*self.names, uuid.uuid4().hex, [pending.number for pending in pending_requests])
        for pending in pending_requests:
            pending.sent = True
        try:
            made = await service.create(file, batch.nonce, batch.created)
        except BatchRejected as error:
            told = self._refusal(error.message or str(error))
            self._without_answer(batch, "refused", told, batch.numbers)
            raise told from None
        except (NoBatches, LMAuthError, LMBillingError) as error:
            self._without_answer(batch, "refused", error, batch.numbers)
            raise
        self.log.named(batch, made.id)
        log.info("batch %s: %d requests sent to %s", made.id, len(pending_requests), self.names[0])
        return replace(batch, name=str(made.id))

    async def _take_up(self, batch: SentBatch) -> None:
        """See a batch of an earlier start to its end; whether the service ever had it is asked first."""
        try:
            name = batch.name
            if name is None:
                found = await self.service.find(batch.nonce, batch.created)
                if found is None:
                    self._without_answer(batch, "not sent", Unanswered("it was never made"), batch.numbers)
                    return
                name = str(found.id)
                self.log.named(batch, name)
            await self._follow(replace(batch, name=name), self.service)
        except Exception as error:  # noqa: BLE001 — raised again by each who waits, or will
            self._lose(batch.numbers, error)

    async def _follow(self, batch: SentBatch, service: BatchService) -> None:
        """Wait for the batch's end; hand its answers over, and tell the others that they have none."""
        end = await self._end(batch, service)
        failures = end.errors.data if end.errors and end.errors.data else []
        if end.status == "failed":
            await self._failed(batch, failures, service)
            return
        found = _OutputReader(set(batch.numbers))
        for file in (end.output_file_id, end.error_file_id):
            if file:
                await self._hand_over(found, await service.lines(file))
        left = found.left
        # What the service did not come to costs nothing. What it lost, or garbled, may have been billed.
        lost = left - found.spared if end.status == "completed" or found.unreadable else set[int]()
        self._without_answer(batch, end.status, Unanswered(end.status), left - lost, lost)
        log.info("batch %s: %s, %d answered, %d not", batch.name, end.status, len(batch.numbers) - len(left), len(left))

    async def _end(self, batch: SentBatch, service: BatchService) -> Any:
        """The batch as it ended."""
        wait, said, looks = min(FIRST_LOOK, self.config.poll), "", 0
        while True:
            now = await service.look(str(batch.name))
            looks += _lacks_file(now)
            if now.status in ENDED and (not _lacks_file(now) or looks > LOOKS):
                return now
            counts = now.request_counts
            if counts is not None and said != (telling := f"{now.status}, {counts.completed} of {counts.total} done"):
                said = telling
                log.info("batch %s: %s", batch.name, said)
            await asyncio.sleep(wait)
            wait = min(self.config.poll, 1.5 * wait)

    async def _failed(self, batch: SentBatch, failures: Sequence[Any], service: BatchService) -> None:
        """The service took nothing of the batch. One that its queue had no room for goes again, in halves."""
        first = failures[0] if failures else None
        code = getattr(first, "code", None)
        if code == FULL:
            await self._make_room(batch)
            return
        line = f" (line {first.line})" if first is not None and first.line else ""
        said = one_line(service.without_key(getattr(first, "message", None) or code or "no reason given"), 200)
        error = self._refusal(f"batch {batch.name} was refused by {self.names[0]}: {said}{line}")
        self._without_answer(batch, "failed", error, batch.numbers)

    def _refusal(self, said: str) -> BatchRejected | WorkEnds:
        """A whole batch was refused: a mistake in the settings, where the model never answered; later the run ends,
        since another teacher of a pool may be dearer."""
        if not self.log.has_answered(*self.names):
            return BatchRejected(said)
        return WorkEnds(f"{said} — nothing of that batch was paid for; mend that, or set mode: interactive")

    async def _make_room(self, batch: SentBatch) -> None:
        """The service's queue holds so many tokens and no more: smaller batches, one after the other."""
        pending_requests = [
            pending for number in batch.numbers if (pending := self._waiting.get(number)) is not None and pending.line
        ]
        again = {pending.number for pending in pending_requests}
        self.log.ended(batch, "no room", batch.numbers)
        self._unsend(batch.numbers)
        others = [number for number in batch.numbers if number not in again]
        self._tell(others, Unanswered("the service's queue is full"))
        if self._crowded is None:
            self._crowded = asyncio.Semaphore(1)
        if len(batch.numbers) <= SMALL:
            log.warning("batch %s: no room at %s; it is asked again in a while", batch.name, self.names[0])
            await asyncio.sleep(10 * self.config.poll)
        self.most = min(self.most, max(SMALL, min(self.most, len(batch.numbers)) // 2))
        log.warning("batch %s: no room at %s; going on with batches of %d", batch.name, self.names[0], self.most)
        self.take([pending for pending in pending_requests if not pending.answer.done()])

    async def _hand_over(self, found: _OutputReader, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write answers down, piece by piece, and wake those who wait."""
        piece: dict[int, str] = {}
        for line in lines:
            number = _number(line)
            if number is None:
                found.unreadable += 1
            elif number in found.left and (said := _said(line)) is not None:
                found.left.discard(number)
                piece[number] = said
            elif number in found.left and _was_spared(line):
                found.spared.add(number)
            if len(piece) == PIECE:
                self._deliver(piece)
                piece = {}
                await asyncio.sleep(0)  # those who were woken go first
        self._deliver(piece)

    def _deliver(self, answers: Mapping[int, str]) -> None:
        if answers:
            self.log.arrived(answers)
        for number, text in answers.items():
            pending = self._waiting.pop(number, None)
            if pending is not None and not pending.answer.done():
                pending.answer.set_result(text)

    def _without_answer(
        self, batch: SentBatch, how: str, error: Exception, free: Iterable[int], lost: Iterable[int] = ()
    ) -> None:
        """The batch has ended without an answer to these of its calls: some cost nothing, and some may have."""
        free, lost = sorted(free), sorted(lost)
        self.log.ended(batch, how, free, lost)
        self._unsend(free)
        self._tell(free, error)
        self._tell(lost, Unanswered(how, billed=True))

    def _lose(self, numbers: Sequence[int], error: Exception) -> None:
        """Nobody follows the batch of these calls any more: told to those who wait, and to those who come later."""
        self._lost.update(dict.fromkeys(numbers, error))
        self._tell(numbers, error)

    def _unsend(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if (pending := self._waiting.get(number)) is not None:
                pending.sent = False

    def _tell(self, numbers: Iterable[int], error: Exception) -> None:
        for number in numbers:
            pending = self._waiting.pop(number, None)
            if pending is not None and not pending.answer.done():
                pending.answer.set_exception(error)


def tracker_of(log: AnyBatchLog, names: tuple[str, str], make: Callable[[], BatchTracker]) -> BatchTracker:
    """The one courier of this log to the model of these `names` (endpoint, model): two would take each other's batches
    for those of an earlier start."""
    if (tracker := log.trackers.get(names)) is None:
        tracker = log.trackers[names] = make()
    there: BatchTracker = tracker
    return there


def _number(line: Mapping[str, Any]) -> int | None:
    """Which call a line of an output file answers."""
    name = _NAME.fullmatch(str(line.get("custom_id")))
    return int(name[1]) if name else None


def _said(line: Mapping[str, Any]) -> str | None:
    """A line's answer as the log keeps it, or None where it has none."""
    response = line.get("response")
    if not isinstance(response, Mapping) or type(response.get("status_code")) is not int:
        return None
    return json.dumps({"status": response["status_code"], "body": response.get("body"), "at": round(time.time())})


def _was_spared(line: Mapping[str, Any]) -> bool:
    """Whether a line says that the batch ended before the service came to this request."""
    error = line.get("error")
    code = error.get("code") if isinstance(error, Mapping) else None
    return code in {"batch_expired", "batch_cancelled"}


def _lacks_file(batch: Any) -> bool:
    """Whether a batch is completed and does not name the file with its answers."""
    if batch.status != "completed" or batch.output_file_id:
        return False
    counts = batch.request_counts
    return not batch.error_file_id or bool(counts is not None and counts.completed)
