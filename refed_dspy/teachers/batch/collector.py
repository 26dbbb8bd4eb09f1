"""Collects many waiting requests into few batches: what a batch engine has in place of connections.

It has the interface of lm15's transports. A request that is sent through it joins the others that wait. Once no more
come, or the service's limits are reached, all of them go as one batch, and each gets its own answer back. So answers
and errors are handled as those of single calls are (engine.py, outcomes.py).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from refed_dspy.config.teacher import BatchConfig
from refed_dspy.teachers.batch.request import AnyBatchLog, PendingRequest, Straggler, current_request
from refed_dspy.teachers.batch.service import BatchService
from refed_dspy.teachers.batch.tracker import BatchTracker
from refed_dspy.teachers.outcomes import is_free
from refed_dspy.teachers.transport import CannedResponse, current_reading
from refed_dspy.teachers.usage import Used, whole

LONGEST_WAIT = 60.0
"""A batch waits at most so many times `quiet` for calls that are in flight elsewhere."""


class BatchCollector:
    """Collects the requests of one event loop for one batch tracker."""

    def __init__(
        self, config: BatchConfig, tracker: BatchTracker, service: BatchService, batch_log: AnyBatchLog, *, mixed: bool
    ) -> None:
        """`tracker` may be shared with other engines; `service` sends what is collected here. `mixed`: a few requests
        left over are to be asked outside a batch (Straggler)."""
        self.config, self.tracker, self.service, self.log, self.mixed = config, tracker, service, batch_log, mixed
        tracker.join(service)
        self._queue: list[PendingRequest] = []
        self._bytes = 0
        self.numbers = itertools.count(1)
        """Numbers for calls that no ledger numbers."""
        self._first = self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._was_busy = False
        """Whether calls were in flight elsewhere at the last look: their next requests may be on the way here."""

    def unused(self) -> dict[int, tuple[int, int]]:
        """Call number → tokens (read, written) of the answers that arrived and nobody asked for. Answers without usage,
        or with one that their texts rule out, are left out; an error used none."""
        answers = {number: _parsed(text) for number, text in self.log.unclaimed(*self.tracker.names).items()}
        return {number: tokens for number, answer in answers.items() if (tokens := _tokens(answer)) is not None}

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
                self._join(pending, request.body)
            answer = _parsed(await pending.answer)
        finally:
            self.log.park(-1)
        body = json.dumps(answer["body"]).encode()
        if reading is not None:
            reading.body = body
        yield CannedResponse(int(answer["status"]), body)

    # --- collecting

    def _join(self, pending: PendingRequest, body: bytes) -> None:
        request = json.loads(body)
        request.setdefault("model", self.service.model)  # Azure's dated API has it in the address
        line = {"custom_id": f"call-{pending.number}", "method": "POST", "url": self.service.path, "body": request}
        pending.service = self.service
        pending.line = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        if self._bytes + len(pending.line) > self.config.megabytes * 1e6:
            self._flush()
        self._queue.append(pending)
        self._bytes += len(pending.line)
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        self._first = self._first or self._last
        if len(self._queue) >= min(self.config.requests, self.tracker.most):
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


def _parsed(text: str) -> Mapping[str, Any]:
    answer: Mapping[str, Any] = json.loads(text)
    return answer


def _tokens(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """Tokens (read, written) by an answer's usage; None where it has none that is valid."""
    body = answer["body"]
    if is_free(answer["status"]) and "content_filter" not in json.dumps(body):
        return 0, 0
    usage = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(usage, Mapping):
        return None
    read, written = whole(usage.get("prompt_tokens")), whole(usage.get("completion_tokens"))
    if read is None or written is None:
        return None
    # Its prompt is not here, but no chat has fewer tokens than so many words.
    used = Used(read, 0, 0, written).raised(_FEWEST, "", _text(body))
    return None if used is None else (read, written)


_FEWEST = "word " * 32


def _text(body: Mapping[str, Any]) -> str:
    """The texts of an answer's choices."""
    choices = body.get("choices")
    messages = (
        [each.get("message") for each in choices if isinstance(each, Mapping)] if isinstance(choices, list) else ()
    )
    return " ".join(str(message.get("content") or "") for message in messages if isinstance(message, Mapping))
