"""HTTP as it comes over the wire: where an answer ends, and what is none; and what is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from dspy.lm15 import LM15Error

from refed_dspy.connections import Connections, NotConnected

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def answering(answer: bytes, asked: list[bytes]) -> AsyncIterator[str]:
    """The address of a server that notes each request and sends `answer`, then ends the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        asked.append(head + await reader.readexactly(length))
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as there:
        yield f"127.0.0.1:{there.sockets[0].getsockname()[1]}"


async def told(answer: bytes, most: int | None = 10**6) -> bytes:
    """The body that is read of `answer`."""
    async with (
        answering(answer, []) as place,
        Connections().ask("POST", f"http://{place}/v1", [], b"?", most=most) as it,
    ):
        return await it.read()


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 5\r\n\r\nwhole and more",
        OK + b"content-length:5\r\nContent-Length: 5\r\n\r\nwhole",
        b"HTTP/1.0 200\r\n\r\nwhole",
        CHUNKED + b"2\r\nwh\r\n3;ext=1\r\nole\r\n0\r\nTrailer: 1\r\n\r\n",
        CHUNKED + b"05\r\nwhole\r\n0\r\n",
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        + OK
        + b"Content-Length: 5\r\n\r\nwhole",
        OK + b"X: " + b"x" * 60_000 + b"\r\nContent-Length: 5\r\n\r\nwhole",
    ],
)
async def test_an_answer_is_read_to_its_end_and_no_further(answer: bytes) -> None:
    assert await told(answer) == b"whole"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed the connection"),
        (OK + b"Content-Length: 5\r\n", "closed the connection"),
        (OK + b"Content-Length: 6\r\n\r\nwhole", "ended early"),
        (OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nwhole", "how long"),
        (OK + b"Content-Length: -5\r\n\r\nwhole", "how long"),
        (OK + b"Content-Length: 1_0\r\n\r\nwhole", "how long"),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n", "how long"),
        (CHUNKED + b"5\r\nwhole\r\n", "ended early"),
        (CHUNKED + b"9\r\nwhole\r\n", "ended early"),
        (CHUNKED + b"4\r\nwhole\r\n0\r\n\r\n", "damaged"),
        (CHUNKED + b"0x5\r\nwhole\r\n0\r\n\r\n", "damaged"),
        (CHUNKED + b"+5\r\nwhole\r\n0\r\n\r\n", "damaged"),
        (CHUNKED + b"5" * 70_000, "ended early"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP"),
        (OK + b"X: " + b"x" * 200_000 + b"\r\n\r\n", "not HTTP"),
        (OK + b"\r\n" + b"x" * 2_000_000, "longer than"),
    ],
)
async def test_what_is_no_whole_answer_is_told_in_a_line(answer: bytes, why: str) -> None:
    with pytest.raises(LM15Error, match=why) as error:
        await told(answer)
    assert not isinstance(error.value, NotConnected), "it was sent, and may be billed"


async def test_no_line_break_gets_into_a_request() -> None:
    asked: list[bytes] = []
    async with answering(b"", asked) as place:
        for headers, path in (([("A", "b\r\nX: y")], ""), ([("A\n", "b")], ""), ([], "/v1\r\nX: y"), ([], "/v 1")):
            with pytest.raises(NotConnected):
                async with Connections().ask("POST", f"http://{place}{path}", headers, b"?"):
                    pass
    assert not asked


@pytest.mark.parametrize("user", ["", "me:pass@"])
async def test_a_plain_address_is_asked_of_a_proxy_by_its_whole_name(user: str) -> None:
    asked: list[bytes] = []
    async with (
        answering(OK + b"Content-Length: 0\r\n\r\n", asked) as place,
        Connections(f"http://{user}{place}").ask("POST", "http://far.invalid:81/v1?a=b", [], b"?"),
    ):
        pass
    assert asked[0].startswith(b"POST http://far.invalid:81/v1?a=b HTTP/1.1\r\nHost: far.invalid:81\r\n")
    assert (b"Proxy-Authorization: Basic bWU6cGFzcw==" in asked[0]) is bool(user)


async def test_a_user_in_the_address_is_sent_unless_a_key_is() -> None:
    asked: list[bytes] = []
    async with answering(OK + b"Content-Length: 0\r\n\r\n", asked) as place:
        for headers in ([], [("authorization", "Bearer k")]):
            async with Connections().ask("POST", f"http://me:pass@{place}/v1", headers, b"?"):
                pass
    assert [head.lower().count(b"authorization:") for head in asked] == [1, 1]
    assert b"Basic bWU6cGFzcw==" in asked[0] and b"Bearer k" in asked[1] and b"me:pass" not in b"".join(asked)
