"""What stands between lm15's client and our connections: it bounds an answer, and reads and mends its headers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from dspy.lm15 import Config, ProviderError, TransportError

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.connections import Connections, HttpReply
from refed_dspy.teachers.rate_limits import RateLimits, current_slot

ENVELOPE = 1 << 20
"""Bytes of an answer beside what the model wrote: filters' verdicts, identifiers, an echo of the request."""
BYTES_A_TOKEN = 128
"""The longest tokens; on average one has 4, and 12 where all characters are escaped."""
BYTES_A_LOGPROB = 8192
"""What a token takes more where `params` ask for its probabilities: up to 20 alternatives."""
_SECONDS = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,9})?")
current_reading: ContextVar[Reading | None] = ContextVar("refed_reading", default=None)
"""Of the answer that this task waits for."""


class WebPage(TransportError):
    """An HTML page came back instead of JSON: from a proxy, or a wrong address."""


class Unreadable(ProviderError):
    """An answer that is JSON, but not of the shape that it should have."""


def longest_answer(config: TeacherConfig) -> int:
    """Bytes: no answer to a request with these settings is longer, unless it asks for log-probabilities itself."""
    a_token = BYTES_A_TOKEN + (BYTES_A_LOGPROB if config.params.get("logprobs") else 0)
    return ENVELOPE + a_token * config.max_tokens


def bytes_of_logprobs(config: TeacherConfig, request: Config) -> int:
    """How much longer an answer may be to a request that asks for log-probabilities itself."""
    return 0 if request.logprobs is None else BYTES_A_LOGPROB * (request.max_tokens or config.max_tokens)


@dataclass
class Reading:
    """What was read of one answer, so that it can be read in another way."""

    body: bytes = b""
    instead: bytes | None = None
    """What is to be read in its place, without asking again."""
    more: int = 0
    """Bytes that it may be longer than other answers of its model."""


class WatchedTransport:
    """What lm15's client sends through. `limits` learns from the headers of each answer; an answer has at most `most`
    bytes."""

    def __init__(self, connections: Connections, limits: RateLimits, most: int) -> None:
        self._connections, self._limits, self._most = connections, limits, most

    @asynccontextmanager
    async def stream(self, request: Any) -> AsyncIterator[CannedResponse]:
        """The response to one request. Raises WebPage, AnswerTooLong, NotConnected, ProviderError for a redirect."""
        reading = current_reading.get() or Reading()
        if reading.instead is not None:
            yield CannedResponse(200, reading.instead)
            return
        slot = current_slot.get()

        def leaves() -> None:
            if slot is not None:
                slot.left = True

        headers = [*request.headers, ("Accept-Encoding", "identity")]
        most = self._most + reading.more
        async with self._connections.ask(
            request.method, request.url, headers, request.body or None, most=most, leaves=leaves
        ) as reply:
            if not 200 <= reply.status < 300 and reply.status < 400:  # with JSON in it lm15 would read it as an answer
                raise ProviderError(f"answered HTTP {reply.status}", status=reply.status)
            if slot is not None:
                slot.answered = True
            self._read_headers(reply)
            reading.body = await reply.read()
            yield CannedResponse(reply.status, reading.body, reply.headers, reply.reason)

    def _read_headers(self, reply: HttpReply) -> None:
        """Learn from the headers, and take out what cannot be used. Raises WebPage."""
        limits: dict[str, str] = {}
        is_page = False
        for name, value in tuple(reply.headers):
            name = name.lower()
            if "ratelimit" in name:
                limits[name] = value
            elif name == "content-type":
                is_page = value.lower().startswith("text/html")
            elif name == "retry-after" and not is_wait(value):
                reply.headers = [header for header in reply.headers if header[0].lower() != name]
        if limits:
            self._limits.learn(limits)
        # A gateway's page about too many requests, or about an error of its own, means what its status says.
        if is_page and reply.status != 429 and reply.status < 500:
            raise WebPage(f"answered HTTP {reply.status} with a web page, not with JSON")


@dataclass(frozen=True)
class CannedResponse:
    """An answer that is here already, with the interface that lm15 expects of a transport's response."""

    status: int
    body: bytes
    headers: Sequence[tuple[str, str]] = ()
    reason: str = ""
    http_version: str = "HTTP/1.1"

    async def read(self) -> bytes:
        return self.body


def is_wait(retry_after: str) -> bool:
    """Whether a Retry-After is seconds or a date. Python takes `1_0`, `nan` and other scripts' digits for numbers."""
    if _SECONDS.fullmatch(retry_after.strip()):
        return True
    try:
        return parsedate_to_datetime(retry_after) is not None and retry_after.isascii()
    except (ValueError, IndexError, OverflowError):
        return False
