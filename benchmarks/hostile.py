"""Answers that an honest endpoint does not give: what a client must neither follow, nor hold, nor print."""

from __future__ import annotations

import asyncio
import gzip
import random
from functools import cache

from aiohttp import web

from benchmarks.wires import Dropped

HOSTILE = {"redirect", "controls", "deep", "bomb", "endless", "short", "pause"}
MILLION = 1_000_000
TITLE = (
    r'{"error": {"message": "\u001b]0;owned\u0007\u001b[2J\u009b31m\u0000\r\nrefed: done\ud800", "code": "\u001b[H"}}'
)
PAUSES = ["nan", "-1e308", "soon", "", "٣", "0x10", "1e-300"]


async def answer(fate: str, request: web.BaseRequest) -> web.StreamResponse:
    """Send the answer of that name: redirect (307 to an address of this server), controls (a 400 that writes to a
    terminal), deep (JSON of 200,000 brackets), bomb (300 MB of blanks in 300 KB of gzip), endless (blanks, until the
    client leaves), short (fewer bytes than it promises), pause (429 with an odd Retry-After). Nothing of it is billed.
    """
    headers = {"Content-Type": "application/json"}
    if fate == "endless" or fate == "short":
        return await _unfinished(request, headers, length=MILLION if fate == "short" else None)
    made = {
        "redirect": lambda: web.Response(status=307, headers={"Location": f"{request.raw_path}?again"}),
        "controls": lambda: web.Response(status=400, body=TITLE.encode(), headers=headers),
        "deep": lambda: web.Response(body=b"[" * 100_000 + b"]" * 100_000, headers=headers),
        "bomb": lambda: web.Response(body=_packed(), headers={**headers, "Content-Encoding": "gzip"}),
        "pause": lambda: web.Response(status=429, headers={**headers, "Retry-After": random.choice(PAUSES)}),
    }[fate]()
    await made.prepare(request)
    await made.write_eof()
    return made


async def _unfinished(request: web.BaseRequest, headers: dict[str, str], length: int | None) -> web.StreamResponse:
    """Blanks without an end, or a few of `length` that are promised. Raises Dropped, ConnectionError."""
    response = web.StreamResponse(headers=headers)
    response.content_length = length
    await response.prepare(request)
    while True:
        await response.write(b" " * 1000)
        if length is not None:
            raise Dropped
        await asyncio.sleep(0.001)


@cache
def _packed() -> bytes:
    return b"".join([gzip.compress(b" " * MILLION)] * 300)  # its members follow one another, as gzip allows
