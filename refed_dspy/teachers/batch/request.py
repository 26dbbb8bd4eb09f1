"""A request that waits in a batch, how it may end, and the batch log of a program without a ledger."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dspy.lm15 import TransportError

from refed_dspy.ledger.batches import BatchLog, SentBatch
from refed_dspy.teachers.batch.service import BatchService

CANCELLED = "cancelled"
"""The service's status of a batch that a person cancelled there."""


class Unanswered(TransportError):
    """A batch ended without an answer to this request. `billed`: it may have been paid for all the same."""

    def __init__(self, why: str, *, billed: bool = False) -> None:
        super().__init__(f"the batch ended without an answer: {why}")
        self.why, self.billed = why, billed


class Straggler(Exception):
    """So few requests wait that they are not worth a batch: this one is to be asked outside a batch."""


@dataclass(eq=False)
class PendingRequest:
    """One request in a batch: the number of its call, its answer, and whether the service may have it."""

    number: int
    held: bool = False
    """An earlier start sent it."""
    line: bytes = b""
    answer: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    sent: bool = False
    service: BatchService | None = None
    """Sends it, with its own key; None: the tracker's own service."""

    @property
    def came(self) -> bool:
        """Whether the answer has come."""
        return self.answer.done() and not self.answer.cancelled() and self.answer.exception() is None

    @property
    def billed(self) -> bool:
        """Whether it ended without an answer and may have been paid for all the same."""
        error = None if not self.answer.done() or self.answer.cancelled() else self.answer.exception()
        return isinstance(error, Unanswered) and error.billed


current_request: ContextVar[PendingRequest | None] = ContextVar("refed_pending_request", default=None)
"""The request that this task is sending."""


class NullBatchLog:
    """The batch log of a program that is called without a ledger: its batches end with the process."""

    in_flight_elsewhere, stopping = 0, False

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self.trackers: dict[tuple[str, str], Any] = {}

    def begin(self, endpoint: str, model: str, nonce: str, numbers: Sequence[int]) -> SentBatch:  # noqa: ARG002
        return SentBatch(next(self._ids), nonce, None, time.time(), tuple(numbers))

    def park(self, *_: object) -> None:
        """Nothing is written."""

    named = arrived = ended = settle = tidy = park

    def answer(self, number: int) -> None:
        """Nothing is kept."""

    def under_way(self, *_: str) -> Sequence[SentBatch]:
        return ()

    def unclaimed(self, *_: str) -> Mapping[int, str]:
        return {}

    def has_answered(self, *_: str) -> bool:
        return False


AnyBatchLog: TypeAlias = BatchLog | NullBatchLog
