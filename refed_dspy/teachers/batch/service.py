"""What all batch services have in common: the requests that wait, a batch as its service tells of it, and the lines of
a file with answers.

A service keeps no state of ours, and every method may be called again after a kill: only `create` makes something that
costs money, and what it made is found again by its nonce.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

from dspy.lm15 import TransportError

from refed_dspy.config.keys import without_keys_in
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.teachers.rate_limits import PATIENCE
from refed_dspy.teachers.route import Route

log = logging.getLogger("refed_dspy.batches")
Lines: TypeAlias = AsyncIterator[dict[str, Any]]
Deliver: TypeAlias = Callable[[Lines], Awaitable[None]]
CANCELLED = "cancelled"
"""The status of a batch that a person cancelled at the service."""
ENDED = {"completed", "failed", "expired", CANCELLED}
"""The statuses of a batch that has ended, whatever its service calls them."""
EARLIER = 86_400
"""Seconds that a service's clock may be behind this machine's."""
YOUNG, LAG = 60.0, 10.0
"""Seconds: a batch younger than YOUNG may not be listed yet, and is looked for again for LAG."""
_NAME = re.compile(r"(?:call|[0-9a-f]{32})-([0-9]{1,18})")
current_request: ContextVar[PendingRequest | None] = ContextVar("refed_pending_request", default=None)
"""The request that this task is sending."""


class Unanswered(TransportError):
    """A batch ended without an answer to this request. `billed`: it may have been paid for all the same."""

    def __init__(self, why: str, *, billed: bool = False) -> None:
        super().__init__(f"the batch ended without an answer: {why}")
        self.why, self.billed = why, billed


class Straggler(Exception):
    """So few requests wait that they are not worth a batch: this one is to be asked outside a batch."""


class NoRoom(Exception):
    """The service takes no batch of this size at the moment; none was made."""


@dataclass(eq=False)
class PendingRequest:
    """One request in a batch: the number of its call, its answer, and whether the service may have it."""

    number: int
    held: bool = False
    """An earlier start sent it."""
    line: bytes = b""
    """It, as its service's `line` writes it."""
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


@dataclass(frozen=True)
class ServiceBatch:
    """A batch as its service tells of it."""

    name: str
    status: str
    """One of ENDED; until then the service's own word."""
    total: int = 0
    done: int = 0
    """Requests in it, and how many of them are done."""
    files: tuple[str, ...] = ()
    """What `read` reads its answers from."""
    whole: bool = True
    """False: it has ended, and the names of its files are still to come."""
    withheld: bool = False
    """Requests may have been answered and billed, and the service does not give the answers out."""
    why: str = ""
    """The reason of a batch that failed, in which nothing was executed."""
    no_room: bool = False
    """That the service's queue was full is the reason."""


class AnswerLine(NamedTuple):
    """What a line of an answer file says of a request: by HTTP status and body, or that it was not executed."""

    status: int | None
    body: Any = None
    not_executed: bool = False


class BatchService(ABC):
    """The batches of one endpoint, for one event loop. Its methods raise what `http.HttpService` says."""

    most_requests: ClassVar[int] = 1_000_000
    most_bytes: ClassVar[int] = 10**10
    """What a batch can have, where its settings do not say less."""

    def __init__(self, endpoint: str, model: str) -> None:
        self.endpoint, self.model = endpoint, model
        self.reached = False
        """Whether it ever answered. Until then nothing is retried while it cannot be reached."""
        self.known: set[str] = set()
        """The names of batches that are followed: none of them is looked for."""

    @abstractmethod
    def line(self, number: int, request: Any) -> bytes:
        """The request of call `number`, which lm15 would send as `request`."""

    async def prepare(self, requests: Sequence[PendingRequest]) -> str:  # noqa: ARG002
        """Have the service take the requests, where it wants them first; returns what names them there. It costs
        nothing, and may be done twice. Raises NoBatches, NotReached: nothing was made, so another teacher may be
        asked."""
        return ""

    @abstractmethod
    async def create(self, prepared: str, requests: Sequence[PendingRequest], nonce: str, since: float) -> ServiceBatch:
        """Make a batch of what was prepared, once: after a lost answer, it is looked for before it is made again.

        Only where there certainly is no batch it raises BatchRejected, NoBatches, NoRoom, Redirected, LMAuthError or
        LMBillingError.
        """

    @abstractmethod
    async def find(self, nonce: str, since: float, requests: int, prepared: str = "") -> ServiceBatch | None:
        """The batch of so many `requests` made with `nonce` after `since` (seconds since 1970), or of `prepared`; or
        None. A batch that was begun a moment ago is looked for again, since lists lag behind: to take it for one that
        was never made would pay for it twice."""

    @abstractmethod
    async def look(self, name: str) -> ServiceBatch:
        """The batch as it stands. Raises BatchOutOfReach where the endpoint does not know it."""

    @abstractmethod
    async def read(self, file: str, requests: int, deliver: Deliver) -> None:
        """Have the lines of an answer file delivered as they come; {} for one that is no JSON object. After a lost
        connection they are delivered once more, from the first one on."""

    @abstractmethod
    def outcome(self, line: Mapping[str, Any]) -> AnswerLine:
        """What a line of an answer file says."""

    async def exists(self) -> bool:
        """Whether the endpoint has batches, which costs nothing to ask. Raises LMError where it does not say."""
        return True

    async def aclose(self) -> None:  # noqa: B027 — a folder has nothing to close
        """Close its connections."""


def open_service(config: TeacherConfig, route: Route, patience: float = PATIENCE) -> BatchService:
    """The batch service of a teacher. `patience`: seconds for which an endpoint that does not answer is asked again."""
    if config.mode == "folder":
        from refed_dspy.teachers.batch.folder import FolderService

        return FolderService(config, route)
    if route.provider == "anthropic":
        from refed_dspy.teachers.batch.anthropic import AnthropicService

        return AnthropicService(config, route, patience)
    if route.provider == "gemini":
        from refed_dspy.teachers.batch.gemini import GeminiService

        return GeminiService(config, route, patience)
    from refed_dspy.teachers.batch.openai import OpenAIService

    return OpenAIService(config, route, patience)


async def json_lines(chunks: AsyncIterator[bytes], longest: int, requests: int) -> Lines:
    """The lines of a file; {} for one that is no JSON object or has more than `longest` bytes. A file that answers so
    many `requests` is read no further than it can be long."""
    start, length, read, left_out = b"", 0, 0, 0
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")  # at line feeds only: texts may contain Unicode's other line ends
        for end in ends:
            if length + len(end) > longest:
                left_out += 1
                yield {}
            elif line := (start + end).strip():
                yield _object(line)
            start, length = b"", 0
        length += len(rest)
        start = start + rest if length <= longest else b""
        read += len(chunk)
        if read > longest * (requests + 1):
            log.warning("a batch's file is longer than its answers can be; it was not read to the end")
            yield {}
            return
    if length > longest or start.strip():
        left_out += length > longest
        yield _object(start)
    if left_out:
        log.warning("answers over %.1f MB left out of a batch's file: %d", longest / 1e6, left_out)


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = without_keys_in(json.loads(line))
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


@dataclass
class AnswerReader:
    """What was read of a batch's files, by its service's `outcome`. `left`: calls without an answer so far;
    `not_executed`: those of them that the service says it did not execute; `unreadable`: number of lines that name no
    call."""

    left: set[int]
    outcome: Callable[[Mapping[str, Any]], AnswerLine]
    not_executed: set[int] = field(default_factory=set)
    unreadable: int = 0

    def answer(self, line: Mapping[str, Any]) -> tuple[int, str] | None:
        """(Number of the call, answer as the log keeps it) of a line; None where it holds none for a call in `left`."""
        if (number := call_number(line)) is None:
            self.unreadable += 1
        elif number in self.left:
            said = self.outcome(line)
            if said.status is not None:
                answer = {"status": said.status, "body": said.body, "at": round(time.time())}
                return number, json.dumps(answer)
            if said.not_executed:
                self.not_executed.add(number)
        return None


def call_number(line: Mapping[str, Any]) -> int | None:
    """The number of the call that a line names; None where it names none."""
    name = _NAME.fullmatch(str(line.get("custom_id", line.get("key"))))
    return None if name is None else int(name[1])


async def joined(requests: Sequence[PendingRequest], begin: bytes = b"") -> AsyncIterator[bytes]:
    """The lines of `requests`, each after `begin`, without a copy of them all."""
    for request in requests:
        yield begin + request.line
