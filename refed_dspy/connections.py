"""HTTP for all that this package asks itself: teachers, batches, scorers.

A request has a connection of its own. So what a server sends late, twice or without being asked can never be read as
the answer to another request, which HTTP/1.1 cannot tell apart on a connection that is used again. That is also all
that HTTP is needed for here, so it is spoken over asyncio's streams: one request and one answer cost less so than on a
connection of aiohttp's that is used again (docs/log.md). An answer is bounded, in bytes and where it is decompressed.
No redirect is followed, no cookie kept, and nothing is read from the environment; loopback is never asked through a
proxy.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import time
import zlib
from base64 import b64encode
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from aiohappyeyeballs import start_connection
from dspy.lm15 import ProviderError, TransportError
from yarl import URL

CONNECT_SECONDS = 10.0
"""Seconds for the name, the connection, the proxy's consent and TLS together."""
NAME_SECONDS = 60
"""Seconds for which an address that a name stands for is remembered."""
BYTES_A_SECOND = 1 << 16
"""Who sends or reads a file at half a megabit a second is not cut off."""
_OTHER_ADDRESS = 0.25
"""Seconds after which another address of the same name is tried, too (IPv4 where IPv6 leads nowhere)."""
_PIECE = 1 << 16
"""Bytes that are read at once; the longest head, too."""
_STATUS = re.compile(r"HTTP/1\.[01] ([1-9][0-9]{2})(?: (.*))?")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_LENGTH, _CHUNK = re.compile(r"[0-9]{1,18}"), re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?\r\n", re.DOTALL)
_HTTP_ONLY = "only HTTP proxies can be used"
Headers: TypeAlias = list[tuple[str, str]]
Head: TypeAlias = tuple[int, str, Headers]
"""Status, its reason, headers."""
Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


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

    def __init__(self, head: Head, body: asyncio.StreamReader, most: int | None) -> None:
        """`most`: bytes of the decompressed body; None: whoever reads it bounds it. Raises AnswerTooLong,
        TransportError."""
        (self.status, self.reason, headers), self.headers = head, list[tuple[str, str]]()
        self._body, self._most = body, most
        lengths, transfer, coding, self._charset = set[str](), "", [], None
        for name, value in headers:
            known = name.lower()
            if known == "content-encoding":
                coding.append(value.lower())
                continue
            self.headers.append((name, value))
            if known == "content-length":
                lengths.add(value)
            elif known == "transfer-encoding":
                transfer = value.lower()
            elif known == "content-type" and (charset := _CHARSET.search(value)):
                self._charset = charset[1].lower()
        self._coding = ",".join(each for each in coding if each != "identity")
        self._chunked = transfer == "chunked"
        if (transfer and not self._chunked) or not (len(lengths) < 2 and all(map(_LENGTH.fullmatch, lengths))):
            raise TransportError("it does not say how long its answer is")
        self._length = 0 if self.status in {204, 304} else int(lengths.pop()) if lengths and not transfer else None
        if most is not None and (self._length or 0) > most:
            raise too_long(most, self.status)

    async def read(self) -> bytes:
        """The whole body; as UTF-8 where it is text in the character set that its header names."""
        body = b"".join([piece async for piece in self])
        if self._charset in {None, "utf-8", "utf8"}:
            return body
        try:
            return body.decode(str(self._charset)).encode()
        except (LookupError, ValueError):
            return body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises AnswerTooLong, TransportError."""
        length = 0
        raw = self._chunks() if self._chunked else self._pieces(self._length)
        try:
            async for piece in inflated(raw, self._coding) if self._coding else raw:
                length += len(piece)
                if self._most is not None and length > self._most:
                    raise too_long(self._most, self.status)
                yield piece
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            raise TransportError(f"its answer ended early: {_told(error)}") from None

    async def _pieces(self, length: int | None) -> AsyncIterator[bytes]:
        """So many bytes; None: all until the connection ends."""
        while length is None or length > 0:
            piece = await self._body.read(_PIECE if length is None else min(length, _PIECE))
            if not piece:
                if length is None:
                    return
                raise EOFError
            length = None if length is None else length - len(piece)
            yield piece

    async def _chunks(self) -> AsyncIterator[bytes]:
        """The body of an answer that says the length of each part, up to the last: what follows is for nobody."""
        while True:
            if (size := _CHUNK.fullmatch(await self._body.readuntil(b"\r\n"))) is None:
                raise TransportError("its answer is damaged")
            if not (length := int(size[1], 16)):
                return
            async for piece in self._pieces(length):
                yield piece
            if await self._body.readexactly(2) != b"\r\n":
                raise TransportError("its answer is damaged")


class Connections:
    """The connections of one event loop."""

    def __init__(self, proxy: str | None = None) -> None:
        """`proxy`: the address of the HTTP proxy that all requests go through."""
        self._proxy = proxy
        shown = (proxy or "").rpartition("@")[2].rpartition("//")[2]  # without the password that it may have
        self._by_proxy = f", through the proxy {shown} of the environment" if proxy else ""
        self._known: dict[tuple[str, int], tuple[Sequence[Any], float]] = {}
        """Host and port → the address where it was found, and until when that holds (`time.monotonic`)."""
        self._head_before: tuple[Any, bytes] = None, b""
        """What the head of the last request was made of, and its text but for the length of the body."""

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        address: str,
        headers: Headers,
        body: bytes | AsyncIterable[bytes] | None = None,
        *,
        most: int | None = None,
        leaves: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[HttpReply]:
        """The answer to one request, whose `body` is bytes, or gives them; then `headers` say how many they are.
        `leaves` is called just before its first byte is sent.

        Raises:
            NotConnected: nothing was sent.
            TransportError: it may have been sent, and no whole answer came; ProviderError: it is too long.
        """
        try:
            place = _place(address)
            head = self._head(method, place, headers, body)
            reader, writer = await self._open(place)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise NotConnected(_told(error) + self._by_proxy) from None
        try:
            leaves()
            try:
                writer.write(head)
                if body is not None and not isinstance(body, bytes):
                    with suppress(ConnectionError):  # it may have answered before it has read everything
                        async for piece in body:
                            writer.write(piece)
                            await writer.drain()
                answer = await _read_head(reader)
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
                raise TransportError(_told(error) + self._by_proxy) from None
            yield HttpReply(answer, reader, most)
        finally:
            writer.transport.abort()

    async def aclose(self) -> None:
        """Have what was closed go, before the loop does. It may be used again."""
        for _ in range(3):  # a transport closes its socket in a later round of the loop, and TLS one after that
            await asyncio.sleep(0)

    def _head(self, method: str, place: Place, headers: Headers, body: bytes | AsyncIterable[bytes] | None) -> bytes:
        """The request down to its body, and the body where that is bytes. Raises ValueError."""
        made_of = method, place, headers
        if self._head_before[0] != made_of:
            self._head_before = made_of, self._text_of_head(method, place, headers)
        if body is None or isinstance(body, bytes):
            return b"%sContent-Length: %d\r\n\r\n%s" % (self._head_before[1], len(body or b""), body or b"")
        return self._head_before[1] + b"\r\n"

    def _text_of_head(self, method: str, place: Place, headers: Headers) -> bytes:
        """All lines but the length of the body. Raises ValueError."""
        target = place.target
        added = [("Host", place.authority), ("Connection", "close"), ("Accept", "*/*"), ("User-Agent", "refed-dspy")]
        if place.login:
            added.append(("Authorization", place.login))
        if self._proxy is not None and not place.secure:
            target = f"http://{place.authority}{target}"
            added += _proxy_login(self._proxy)
        given = {name.lower() for name, _ in headers}
        sent = [*(header for header in added if header[0].lower() not in given), *headers]
        if any(line_break in text for header in sent for text in header for line_break in "\r\n\0"):
            raise ValueError("a header has a line break in it")
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent), ""]
        return "\r\n".join(lines).encode()

    async def _open(self, place: Place) -> Streams:
        """A connection to `place`. Raises OSError, EOFError, LimitOverrunError, ValueError."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if self._proxy is None:
                    return await self._connect(place)
                proxy = _place(self._proxy, _HTTP_ONLY)
                streams = await self._connect(proxy)
                if place.secure:
                    await self._tunnel(streams, place)
                return streams
        except TimeoutError:
            raise OSError(f"no connection in {CONNECT_SECONDS:g} s") from None

    async def _connect(self, place: Place) -> Streams:
        """A connection to its host: at the address where that was found lately, else by its name."""
        loop, now, name = asyncio.get_running_loop(), time.monotonic(), (place.host, place.port)
        addresses, until = self._known.get(name, ((), 0.0))
        fresh = now >= until
        if fresh:
            if addresses:  # the others go on with it while one asks again
                self._known[name] = addresses, now + CONNECT_SECONDS
            addresses = await loop.getaddrinfo(*name, type=socket.SOCK_STREAM)
        try:
            there = await start_connection(addresses, happy_eyeballs_delay=_OTHER_ADDRESS, interleave=1)
        except OSError:
            self._known.pop(name, None)
            raise
        if fresh:
            found = there.getpeername()[:2]
            self._known[name] = [each for each in addresses if each[4][:2] == found], now + NAME_SECONDS
        tls: dict[str, Any] = {"ssl": _trusted(), "server_hostname": place.host} if place.secure else {}
        return await asyncio.open_connection(sock=there, limit=_PIECE, **tls)

    async def _tunnel(self, streams: Streams, place: Place) -> None:
        """Have the proxy connect us to `place`, and speak TLS through it."""
        assert self._proxy is not None
        reader, writer = streams
        try:
            where = place.authority
            where += "" if where.endswith(f":{place.port}") else f":{place.port}"
            lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
            lines += [f"{name}: {value}" for name, value in _proxy_login(self._proxy)]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            status, reason, _ = await _read_head(reader)
            if not 200 <= status < 300:
                raise OSError(f"refused with HTTP {status} {reason}".rstrip())
            await writer.start_tls(_trusted(), server_hostname=place.host)
        except BaseException:
            writer.transport.abort()
            raise


class Place(NamedTuple):
    """Where an address leads."""

    secure: bool
    host: str
    port: int
    authority: str
    """Host, and port where it is not the usual one."""
    target: str
    """Path and query."""
    login: str
    """What its user and password are as a header; empty where it has none."""


@lru_cache(maxsize=256)
def _place(address: str, otherwise: str = "no address of a server") -> Place:
    """Raises ValueError, with the text `otherwise`."""
    url = URL(address, encoded=True)
    target = url.raw_path_qs or "/"
    if url.scheme not in {"http", "https"} or not url.raw_host or not url.port or not re.fullmatch(r"[!-~]+", target):
        raise ValueError(otherwise)
    user = f"{url.user or ''}:{url.password or ''}"
    login = f"Basic {b64encode(user.encode()).decode()}" if user != ":" else ""
    return Place(url.scheme == "https", url.raw_host, url.port, url.host_port_subcomponent or "", target, login)


def _proxy_login(proxy: str) -> Headers:
    login = _place(proxy, _HTTP_ONLY).login
    return [("Proxy-Authorization", login)] if login else []


async def _read_head(reader: asyncio.StreamReader) -> Head:
    """Status, its reason, headers; of interim answers (100 to 199) nothing. Raises OSError, EOFError, ValueError,
    LimitOverrunError."""
    while True:
        first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode("latin-1").split("\r\n")
        if (status := _STATUS.fullmatch(first)) is None:
            raise ValueError("what came back is not HTTP")
        number = int(status[1])
        if number >= 200 or number == 101:  # after that nothing of HTTP comes
            headers = [(name.strip(), value.strip()) for name, colon, value in map(_parted, lines) if colon]
            return number, status[2] or "", headers


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _trusted() -> ssl.SSLContext:
    """Whose certificates are believed: the system's, or those that OpenSSL's own variables name."""
    return _context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache
def _context(*_: str | None) -> ssl.SSLContext:
    return ssl.create_default_context()


def _told(error: Exception) -> str:
    """What happened, in one line; the operating system's own words where it has some."""
    if isinstance(error, EOFError):
        return "the server closed the connection"
    if isinstance(error, asyncio.LimitOverrunError):
        return "what came back is not HTTP"
    return str(error) or type(error).__name__


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
