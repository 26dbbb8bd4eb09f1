"""What a batch service replies, as it comes: bounded, so that no reply fills the memory."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx
from dspy.lm15 import TransportError

from refed_dspy.config.keys import without_keys_in
from refed_dspy.connections import BYTES_A_SECOND, Connections, HttpReply, NotConnected

log = logging.getLogger("refed_dspy.batches")
LONGEST_REPLY = 1 << 24
"""Bytes of a reply about batches; a list of 100 takes 100 KB."""
Lines: TypeAlias = AsyncIterator[dict[str, Any]]
_ABOUT_THE_BODY = {"content-type", "content-length", "accept"}
_NAME = re.compile(r"call-([0-9]{1,18})")


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
class OutputReader:
    """What was read of a batch's files. `left`: calls without an answer so far; `not_executed`: those of them that the
    service says it did not execute; `unreadable`: number of lines that name no call."""

    left: set[int]
    not_executed: set[int] = field(default_factory=set)
    unreadable: int = 0

    def answer(self, line: Mapping[str, Any]) -> tuple[int, str] | None:
        """(Number of the call, answer as the log keeps it) of a line; None where it holds none for a call in `left`."""
        name = _NAME.fullmatch(str(line.get("custom_id")))
        if name is None:
            self.unreadable += 1
        elif (number := int(name[1])) in self.left:
            if (text := _answer_text(line)) is not None:
                return number, text
            if _was_not_executed(line):
                self.not_executed.add(number)
        return None


def _answer_text(line: Mapping[str, Any]) -> str | None:
    """A line's answer as the log keeps it; None where it has none."""
    response = line.get("response")
    if not isinstance(response, Mapping) or type(response.get("status_code")) is not int:
        return None
    return json.dumps({"status": response["status_code"], "body": response.get("body"), "at": round(time.time())})


def _was_not_executed(line: Mapping[str, Any]) -> bool:
    """Whether a line says that the batch ended before the service executed this request."""
    error = line.get("error")
    code = error.get("code") if isinstance(error, Mapping) else None
    return code in {"batch_expired", "batch_cancelled"}


class ServiceTransport(httpx.AsyncBaseTransport):
    """What the `openai` client sends through: our connections. Of the headers that it makes only those about the body
    leave, and `auth`: the client reads tokens, organizations and more from the environment.

    A request and its reply have `seconds`, and one more for every BYTES_A_SECOND of a file.
    """

    def __init__(self, connections: Connections, auth: tuple[str, str], seconds: float) -> None:
        self._connections, self._auth, self._seconds = connections, auth, seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        own = [(name, value) for name, value in request.headers.items() if name.lower() in _ABOUT_THE_BODY]
        sent = int(request.headers.get("content-length") or 0)
        is_file = request.url.path.endswith("/content")
        most = None if is_file else LONGEST_REPLY  # the lines of a file are bounded
        exchange = AsyncExitStack()
        try:
            with _as_httpx():
                async with asyncio.timeout(self._seconds + sent / BYTES_A_SECOND):
                    ask = self._connections.ask(
                        request.method,
                        str(request.url),
                        [*own, self._auth],
                        request.stream if sent else None,
                        most=most,
                    )
                    reply = await exchange.enter_async_context(ask)
                    if not is_file or reply.status >= 400:
                        content = await reply.read()
                        await exchange.aclose()
                        return httpx.Response(reply.status, headers=reply.headers, content=content)
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(reply.status, headers=reply.headers, stream=_File(exchange, reply, self._seconds))

    async def aclose(self) -> None:
        await self._connections.aclose()


class _File(httpx.AsyncByteStream):
    """The bytes of a file, which ends `exchange`."""

    def __init__(self, exchange: AsyncExitStack, reply: HttpReply, seconds: float) -> None:
        self._exchange, self._pieces, self._seconds = exchange, aiter(reply), seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read, began = 0, asyncio.get_running_loop().time()
        while True:
            with _as_httpx():
                async with asyncio.timeout_at(began + self._seconds + read / BYTES_A_SECOND):
                    piece = await anext(self._pieces, b"")
            if not piece:
                return
            read += len(piece)
            yield piece

    async def aclose(self) -> None:
        await self._exchange.aclose()


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Raise what our connections raise, and a deadline's end, as the `openai` client knows it."""
    try:
        yield
    except NotConnected as error:
        raise httpx.ConnectError(error.message) from None
    except TransportError as error:
        raise httpx.ReadError(error.message) from None
    except TimeoutError:
        raise httpx.ReadTimeout("no whole answer in time") from None
