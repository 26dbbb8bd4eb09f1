"""Many waiting requests become few batches: what a batch engine has in place of connections.

It looks like one of lm15's transports. A request that is sent through it joins the others that wait; once nothing
more comes, or the service's limits are reached, all of them go as one batch, and each gets its own answer back. So all
that is known about answers and errors (engine.py, receipts.py) holds here too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Self

from refed_dspy.config.teacher import BatchConfig
from refed_dspy.teachers.batch.request import AnyBatchLog, PendingRequest, Straggler, current_request
from refed_dspy.teachers.batch.service import BatchService
from refed_dspy.teachers.batch.tracker import BatchTracker
from refed_dspy.teachers.route import MOST_TOKENS

FREE = {*range(300, 600)} - {408}
"""Statuses of errors that are not billed, as receipts.py has it."""
LONGEST_WAIT = 60.0
"""Times `quiet` that a batch waits at most for calls that are in flight elsewhere."""


class BatchCollector:
    """Collects the requests of one event loop for one courier."""

    def __init__(
        self, config: BatchConfig, tracker: BatchTracker, service: BatchService, batch_log: AnyBatchLog, *, mixed: bool
    ) -> None:
        """`courier` may be that of other engines too; `service` sends what is collected here. `mixed`: a few left
        over are to be asked by themselves (Straggler)."""
        self.config, self.tracker, self.service, self.log, self.mixed = config, tracker, service, batch_log, mixed
        tracker.join(service)
        self._queue: list[PendingRequest] = []
        self._bytes = self._last_number = 0
        self._first = self._last = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._was_busy = False
        """Whether calls were in flight elsewhere at the last look: what comes of them may be on its way here."""

    def next_number(self) -> int:
        """A number for a call that is in no books."""
        self._last_number += 1
        return self._last_number

    def unused(self) -> dict[int, tuple[int, int]]:
        """Tokens (read, written) of the answers that arrived and nobody asked for; without those that do not say. An
        error has none."""
        said = {number: _read(text) for number, text in self.log.unclaimed(*self.tracker.names).items()}
        return {number: tokens for number, one in said.items() if (tokens := _tokens(one)) is not None}

    # --- as a transport

    def stream(self, request: Any) -> _Sent:
        pending = current_request.get()
        assert pending is not None, "a batch engine sends nothing without a place"
        return _Sent(self, pending, request)

    async def ask(self, pending: PendingRequest, body: bytes) -> Mapping[str, Any]:
        """The answer: `status` and `body`. Raises Straggler, Unanswered, and what the service raises."""
        self.log.park(1)
        try:
            if not pending.held:
                self._join(pending, body)
            return _read(await pending.answer)
        finally:
            self.log.park(-1)

    # --- collecting

    def _join(self, pending: PendingRequest, body: bytes) -> None:
        whole = json.loads(body)
        whole.setdefault("model", self.service.model)  # Azure's dated API has it in the address
        line = {"custom_id": f"call-{pending.number}", "method": "POST", "url": self.service.path, "body": whole}
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
        elif self._alarm is None:
            self._alarm = loop.call_later(self.config.quiet, self._look)

    def _look(self) -> None:
        """Send what has come together, if nothing else seems to come."""
        self._alarm = None
        if not self._queue:
            return
        loop, quiet = asyncio.get_running_loop(), self.config.quiet
        left = self._last + quiet - loop.time()
        busy, late = self.log.elsewhere > 0, loop.time() - self._first >= LONGEST_WAIT * quiet
        if left > 0 or ((busy or self._was_busy) and not late):
            self._alarm = loop.call_later(left if left > 0 else quiet, self._look)
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
        self.tracker.take(pending_requests)

    async def aclose(self) -> bool:
        """Let go. Batches under way go on at the service, and the log has them. Returns whether nobody else follows
        them here."""
        if self._alarm is not None:
            self._alarm.cancel()
        return await self.tracker.leave()


class _Sent:
    """One request and its answer, as lm15 wants them from a transport."""

    reason, http_version = "", "HTTP/1.1"

    def __init__(self, batcher: BatchCollector, pending: PendingRequest, request: Any) -> None:
        self._batcher, self._seat, self._request = batcher, pending, request
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self._body = b""

    async def __aenter__(self) -> Self:
        said = await self._batcher.ask(self._seat, self._request.body)
        self.status, self._body = int(said["status"]), json.dumps(said["body"]).encode()
        return self

    async def read(self) -> bytes:
        return self._body

    async def __aexit__(self, *_: object) -> None:
        pass


def _read(text: str) -> Mapping[str, Any]:
    answer: Mapping[str, Any] = json.loads(text)
    return answer


def _tokens(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """What an answer's usage says was read and written."""
    body = answer["body"]
    if answer["status"] in FREE and "content_filter" not in json.dumps(body):
        return 0, 0
    usage = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(usage, Mapping):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(read) is not int or type(written) is not int or min(read, written) < 0 or max(read, written) > MOST_TOKENS:
        return None
    return read, written
