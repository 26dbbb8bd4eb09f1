"""What stands between lm15's client and its connections: it bounds an answer, and reads and mends its headers."""

from __future__ import annotations

import re
import select
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

# Not in dspy.lm15's public names (route.py).
from dspy._vendor.lm15.transports import StdlibAsyncTransport
from dspy._vendor.lm15.transports._async import _AsyncConnectionPool
from dspy.lm15 import Config, ProviderError, TransportError

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.teachers.rate_limits import RateLimits, current_slot

ENVELOPE = 1 << 20
"""Bytes of an answer beside what the model wrote: filters' verdicts, identifiers, an echo of the request."""
BYTES_A_TOKEN = 128
"""The longest tokens; on average one has 4, and 12 where all characters are escaped."""
BYTES_A_LOGPROB = 8192
"""What a token takes more where `params` ask for its probabilities: up to 20 alternatives."""
_PIECE = 1 << 16
_ENCODING = "x-refed-content-encoding"
_SECONDS = re.compile(r"[0-9]{1,20}(?:\.[0-9]{1,9})?")


class WebPage(TransportError):
    """An HTML page came back instead of JSON: from a proxy, or a wrong address."""


class Unreadable(ProviderError):
    """An answer that is JSON, but not of the shape that it should have."""


class AnswerTooLong(ProviderError):
    """The answer has more bytes than `max_tokens` can be. It is not read to its end, and not asked for again at once:
    it may have been billed."""


def longest_answer(config: TeacherConfig) -> int:
    """Bytes: no answer to a request with these settings is longer, unless it asks for log-probabilities itself."""
    a_token = BYTES_A_TOKEN + (BYTES_A_LOGPROB if config.params.get("logprobs") else 0)
    return ENVELOPE + a_token * config.max_tokens


def bytes_of_logprobs(config: TeacherConfig, request: Config) -> int:
    """How much longer an answer may be to a request that asks for log-probabilities itself."""
    return 0 if request.logprobs is None else BYTES_A_LOGPROB * (request.max_tokens or config.max_tokens)


class PolledPool(_AsyncConnectionPool):
    """lm15's pool of connections without `select`, which cannot look at descriptors above 1,023: each connection with
    such a one would count as stale, and be opened anew for every call."""

    async def checkout(self, origin: tuple[str, str, int]) -> Any:
        async with self._lock:
            while idle := self._idle.get(origin):
                connection = idle.pop()
                if not has_ended(connection):
                    self._in_use.add(connection)
                    return connection
                connection.close()
            return None


def has_ended(connection: Any) -> bool:
    """Whether an idle connection was closed by the other side, or has bytes that nobody asked for."""
    if not hasattr(select, "poll"):  # Windows, where select takes any descriptor
        return bool(connection.is_stale())
    if connection.closed or connection.writer.is_closing():
        return True
    poll = select.poll()
    poll.register(connection.writer.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))


class PlainTransport(StdlibAsyncTransport):
    """lm15's transport with the pool above, and without its decompression, which has no bound: 64 KB may become 64 MB,
    and more where it was compressed twice. Compression is not asked for, but some gateways compress all the same."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._pool = PolledPool(self._max_connections)

    async def _read_head(self, *args: Any, **kwargs: Any) -> Any:
        head = await super()._read_head(*args, **kwargs)
        head.headers = [(_ENCODING if name.lower() == "content-encoding" else name, v) for name, v in head.headers]
        return head


@dataclass
class Reading:
    """What was read of one answer, so that it can be read in another way."""

    body: bytes = b""
    instead: bytes | None = None
    """What is to be read in its place, without asking again."""
    more: int = 0
    """Bytes that it may be longer than other answers of its model."""


current_reading: ContextVar[Reading | None] = ContextVar("refed_reading", default=None)
"""Of the answer that this task waits for."""


class WatchedTransport:
    """One of lm15's asynchronous transports. `limits` learns from the headers of each answer; an answer has at most
    `most` bytes."""

    def __init__(self, transport: Any, limits: RateLimits, most: int) -> None:
        self._transport, self._limits, self._most = transport, limits, most

    @asynccontextmanager
    async def stream(self, request: Any) -> AsyncIterator[Any]:
        """The response to one request. Raises WebPage, AnswerTooLong, ProviderError for a redirect."""
        reading = current_reading.get() or Reading()
        if reading.instead is not None:
            yield CannedResponse(200, reading.instead)
            return
        most = self._most + reading.more
        async with self._transport.stream(request) as response:
            if 300 <= response.status < 400:  # with JSON in it lm15 would read it as an answer
                raise ProviderError(f"answered HTTP {response.status}", status=response.status)
            if (slot := current_slot.get()) is not None:
                slot.answered = True
            coding = self._read_headers(response, most)
            yield BoundedResponse(response, most, coding, reading)

    def _read_headers(self, response: Any, most: int) -> str:
        """Learn from the headers, and take out what cannot be used. Returns the body's encoding. Raises WebPage,
        AnswerTooLong."""
        limits: dict[str, str] = {}
        is_page, coding = False, ""
        for name, value in tuple(response.headers):
            name = name.lower()
            if "ratelimit" in name:
                limits[name] = value
            elif name == "content-type":
                is_page = value.lower().startswith("text/html")
            elif name == "content-length" and value.isdecimal() and int(value) > most:
                raise too_long(most, response.status)
            elif name == _ENCODING:
                coding = f"{coding},{value.lower()}".strip(", ")
            elif name == "retry-after" and not is_wait(value):
                response.headers = [header for header in response.headers if header[0].lower() != name]
        if limits:
            self._limits.learn(limits)
        # A gateway's page about too many requests, or about an error of its own, means what its status says.
        if is_page and response.status != 429 and response.status < 500:
            raise WebPage(f"answered HTTP {response.status} with a web page, not with JSON")
        return coding


class BoundedResponse:
    """A response of lm15's transport, decompressed if it has a `coding`. Reading more than `most` bytes of it raises
    AnswerTooLong."""

    def __init__(self, response: Any, most: int, coding: str, reading: Reading) -> None:
        self._most, self._reading = most, reading
        self._chunks = response if coding in {"", "identity"} else inflated(response, coding)
        self.status, self.reason, self.http_version = response.status, response.reason, response.http_version
        self.headers: Sequence[tuple[str, str]] = response.headers

    async def read(self) -> bytes:
        """The whole body."""
        self._reading.body = b"".join([chunk async for chunk in self])
        return self._reading.body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        async for chunk in self._chunks:
            length += len(chunk)
            if length > self._most:
                raise too_long(self._most, self.status)
            yield chunk


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


def too_long(most: int, status: int) -> AnswerTooLong:
    """The error for an answer of more than `most` bytes. Only the status of an error is told: it is not billed."""
    return AnswerTooLong(
        f"its answer is longer than {most / 1e6:.1f} MB, more than max_tokens allows; it was not read to the end",
        status=status if status >= 400 else None,
    )


async def inflated(chunks: AsyncIterable[bytes], coding: str) -> AsyncIterator[bytes]:
    """`chunks`, decompressed in small pieces. Raises TransportError where they are not what `coding` says."""
    if coding not in {"gzip", "x-gzip", "deflate"}:
        raise TransportError(f"its answer has the encoding {coding[:40]!r}, which was not requested")
    inflater = None
    async for chunk in chunks:
        while chunk:
            if inflater is None or inflater.eof:  # a gzip file may have several parts
                inflater = zlib.decompressobj(_window(coding, chunk))
            try:
                while piece := inflater.decompress(chunk, _PIECE):
                    yield piece
                    chunk = inflater.unconsumed_tail
            except zlib.error:
                raise TransportError("its compressed answer is damaged") from None
            chunk = inflater.unused_data.lstrip(b"\0") if inflater.eof else b""
    if inflater is not None and not inflater.eof:  # no bytes are no body: an error may have none
        raise TransportError("its compressed answer ended early")


def _window(coding: str, start: bytes) -> int:
    """zlib's window bits; a negative number is for deflate without a header."""
    if coding != "deflate":
        return 16 + zlib.MAX_WBITS
    return zlib.MAX_WBITS if start[0] & 15 == 8 else -zlib.MAX_WBITS


def is_wait(retry_after: str) -> bool:
    """Whether a Retry-After is seconds or a date. Python takes `1_0`, `nan` and other scripts' digits for numbers."""
    if _SECONDS.fullmatch(retry_after.strip()):
        return True
    try:
        return parsedate_to_datetime(retry_after) is not None and retry_after.isascii()
    except (ValueError, IndexError, OverflowError):
        return False
