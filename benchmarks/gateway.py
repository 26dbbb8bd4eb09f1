"""A gateway before the simulated server that now and then sends what nobody asked for, on connections that it keeps.

Run `python -m benchmarks.gateway UPSTREAM KIND`; it prints `listening on http://127.0.0.1:PORT/v1`. Each KIND is a name
in `KINDS`. It ignores a client's wish to close: bytes come for as long as the connection stands.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

FIFTH = 5
"""Every so many answers are treated in the way of the kind."""
REFUSED = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
TIMED_OUT = b"HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n"
EARLY = b"HTTP/1.1 %s\r\nLink: </a.css>; rel=preload\r\n\r\n"


@dataclass(frozen=True)
class Kind:
    """What is sent: `before` the answer; `after` it, so many seconds `late`, or as the next request begins."""

    before: bytes = b""
    after: Callable[[bytes, bytes], bytes] = lambda *_: b""
    """Made of the answer itself and of one to another request."""
    late: float = 0.0
    at_next: bool = False
    instead: bytes = b""
    """Sent in the answer's place; the answer itself is `after`."""


KINDS = {
    "100": Kind(before=EARLY % b"100 Continue"),
    "102": Kind(before=EARLY % b"102 Processing"),
    "103": Kind(before=EARLY % b"103 Early Hints"),
    "103 twice": Kind(before=2 * (EARLY % b"103 Early Hints")),
    "408 at once": Kind(after=lambda *_: REFUSED),
    "408 later": Kind(after=lambda *_: REFUSED, late=0.01),
    "408 at the next": Kind(after=lambda *_: REFUSED, at_next=True),
    "copy at once": Kind(after=lambda answer, _: answer),
    "copy later": Kind(after=lambda answer, _: answer, late=0.02),
    "copy at the next": Kind(after=lambda answer, _: answer, at_next=True),
    "another's later": Kind(after=lambda _, stranger: stranger, late=0.02),
    "504, then the answer": Kind(instead=TIMED_OUT, after=lambda answer, _: answer, late=0.02),
    "empty, then the answer": Kind(instead=EMPTY, after=lambda answer, _: answer, late=0.02),
}


class Gateway:
    """Passes requests on to `upstream`, and treats every fifth answer in the way of `kind`."""

    def __init__(self, upstream: str, kind: Kind) -> None:
        self.upstream, self.kind = upstream.removesuffix("/v1"), kind
        self.numbers = itertools.count(random.randrange(FIFTH))
        self.session = aiohttp.ClientSession(auto_decompress=False)
        self.last = EMPTY

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, due = self.kind, b""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if due and kind.at_next:
                    writer.write(due)
                due = b""
                answer = await self.passed_on(head, reader)
                odd = next(self.numbers) % FIFTH == 0
                writer.write((kind.before if odd else b"") + (kind.instead if odd and kind.instead else answer))
                if odd:
                    due, self.last = kind.after(answer, self.last), answer
                    if not kind.at_next:
                        await writer.drain()
                        await asyncio.sleep(kind.late)
                        writer.write(due)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def passed_on(self, head: bytes, reader: asyncio.StreamReader) -> bytes:
        line, *rest = head.decode("latin-1").split("\r\n")
        method, path, _ = line.split(" ", 2)
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (text.partition(":") for text in rest if text)
        }
        body = await reader.readexactly(int(headers.pop("content-length", 0)))
        kept = {name: value for name, value in headers.items() if name not in {"host", "connection"}}
        async with self.session.request(method, self.upstream + path, headers=kept, data=body or None) as answer:
            data = await answer.read()
            return (
                f"HTTP/1.1 {answer.status} X\r\nContent-Type: {answer.headers.get('Content-Type', '')}\r\n"
                f"Content-Length: {len(data)}\r\n\r\n"
            ).encode() + data


async def main() -> None:
    gateway = Gateway(sys.argv[1], KINDS[sys.argv[2]])
    listener = await asyncio.start_server(gateway.serve, "127.0.0.1", 0, backlog=1024)
    print(f"listening on http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", flush=True)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
