"""HTTP for all that this package asks itself: teachers, batches, scorers.

A request has a connection of its own. So what a server sends late, twice or without being asked can never be read as
the answer to another request, which HTTP/1.1 cannot tell apart on a connection that is used again. An answer is
bounded, in bytes and where it is decompressed. No redirect is followed, no cookie kept, and nothing is read from the
environment; loopback is never asked through a proxy.
"""

from __future__ import annotations

import os
import ssl
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from dspy.lm15 import ProviderError, TransportError
from yarl import URL

CONNECT_SECONDS = 10.0
"""Seconds for the name, the connection, the proxy's consent and TLS together."""
NAME_SECONDS = 60
"""Seconds for which an address that a name stands for is remembered."""
BYTES_A_SECOND = 1 << 16
"""Who sends or reads a file at half a megabit a second is not cut off."""
_LONGEST_HEADER = 1 << 16
_PIECE = 1 << 16


class NotConnected(TransportError):
    """No connection could be made: no byte of the request has left."""


class AnswerTooLong(ProviderError):
    """The answer has more bytes than it can have. It is not read to its end, and not asked for again at once: it may
    have been billed."""


def proxy_for(address: str) -> str | None:
    """The environment's proxy for `address`; None: it is asked directly, as loopback always is."""
    where = urlsplit(address)
    host = where.hostname or ""
    if host in {"127.0.0.1", "localhost", "::1"} or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(where.scheme) or proxies.get("all")


class HttpReply:
    """An answer whose head has come. Its body is read by iteration or `read`, once."""

    def __init__(self, response: aiohttp.ClientResponse, most: int | None) -> None:
        """`most`: bytes of the decompressed body; None: whoever reads it bounds it."""
        self.status, self.reason = response.status, response.reason or ""
        self.headers: list[tuple[str, str]] = []
        coding = []
        for name, value in response.headers.items():
            if name.lower() == "content-encoding":
                coding.append(value.strip().lower())
            else:
                self.headers.append((name, value))
        self._charset = response.charset
        self._most = most
        self._response = response
        self._coding = ",".join(each for each in coding if each != "identity")
        if most is not None and (response.content_length or 0) > most:
            raise too_long(most, self.status)

    async def read(self) -> bytes:
        """The whole body; as UTF-8 where it is text in the character set that its header names."""
        body = b"".join([piece async for piece in self])
        if self._charset is None or self._charset.lower() in {"utf-8", "utf8"}:
            return body
        try:
            return body.decode(self._charset).encode()
        except (LookupError, ValueError):
            return body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises AnswerTooLong, TransportError."""
        length = 0
        raw = self._response.content.iter_any()
        try:
            async for piece in inflated(raw, self._coding) if self._coding else raw:
                length += len(piece)
                if self._most is not None and length > self._most:
                    raise too_long(self._most, self.status)
                yield piece
        except (aiohttp.ClientError, OSError) as error:
            raise TransportError(f"its answer ended early: {error}") from None


class Connections:
    """The connections of one event loop."""

    def __init__(self, proxy: str | None = None) -> None:
        """`proxy`: the address of the HTTP proxy that all requests go through."""
        self._proxy = proxy
        self._by_proxy = f", through the proxy {_place(proxy)} of the environment" if proxy else ""
        self._connector: aiohttp.TCPConnector | None = None

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        address: str,
        headers: list[tuple[str, str]],
        body: Any = None,
        *,
        most: int | None = None,
        leaves: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[HttpReply]:
        """The answer to one request, whose `body` is bytes, or gives them (AsyncIterable). `leaves` is called just
        before its first byte is sent.

        Raises:
            NotConnected: nothing was sent.
            TransportError: it may have been sent, and no whole answer came; ProviderError: it is too long.
        """
        if self._proxy is not None and urlsplit(self._proxy).scheme not in {"http", "https"}:
            raise NotConnected(f"only HTTP proxies can be used{self._by_proxy}")
        if self._connector is None:
            self._connector = aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=NAME_SECONDS)
        session = _session(self._connector)
        sent = SimpleNamespace(yes=False, leaves=leaves)
        url = URL(address, encoded=True)
        if any(name.lower() == "authorization" for name, _ in headers):
            url = url.with_user(None)
        ask = session.request(
            method, url, headers=headers, data=body, proxy=self._proxy,
            ssl=_trusted() if address.startswith("https") else True, allow_redirects=False, trace_request_ctx=sent,
        )  # fmt: skip
        try:
            response = await ask.__aenter__()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            kind = TransportError if sent.yes else NotConnected
            raise kind(_told(error) + self._by_proxy) from None
        finally:
            session.detach()  # it holds nothing of its own; one for several requests would have to be closed
        try:
            yield HttpReply(response, most)
        finally:
            response.close()

    async def aclose(self) -> None:
        """Close what is open. It may be used again."""
        if self._connector is not None:
            connector, self._connector = self._connector, None
            await connector.close()


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        connector_owner=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
        auto_decompress=False,
        trust_env=False,
        max_line_size=_LONGEST_HEADER,
        max_field_size=_LONGEST_HEADER,
        trace_configs=[_trace()],
    )


@lru_cache
def _trace() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_leaves)
    return trace


def _trusted() -> ssl.SSLContext:
    """Whose certificates are believed: the system's, or those that OpenSSL's own variables name."""
    return _context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache
def _context(*_: str | None) -> ssl.SSLContext:
    return ssl.create_default_context()


async def _leaves(session: aiohttp.ClientSession, context: Any, params: Any) -> None:  # noqa: ARG001
    sent = context.trace_request_ctx
    sent.yes = True
    sent.leaves()


def _place(proxy: str) -> str:
    """The host and port of a proxy, without the password that its address may have."""
    return proxy.rpartition("@")[2].rpartition("//")[2]


def _told(error: Exception) -> str:
    """What happened, in one line; the operating system's own words where it has some."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    cause = getattr(error, "os_error", None)
    return str(cause or error or type(error).__name__)


def too_long(most: int, status: int) -> AnswerTooLong:
    """The error for an answer of more than `most` bytes. Only the status of an error is told: it is not billed."""
    return AnswerTooLong(
        f"its answer is longer than {most / 1e6:.1f} MB, more than it can be; it was not read to the end",
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
