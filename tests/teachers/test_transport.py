"""Answers as they come over the wire: too long, compressed, or with headers that say nothing."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Iterable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.long_answers import LongAnswers, measured
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.connections import Connections, inflated
from refed_dspy.errors import NoAnswer
from refed_dspy.records import Call
from refed_dspy.teachers.rate_limits import RateLimits
from refed_dspy.teachers.transport import (
    BYTES_A_LOGPROB,
    BYTES_A_TOKEN,
    ENVELOPE,
    WatchedTransport,
    WebPage,
    is_wait,
    longest_answer,
)
from tests.teachers.test_rate_limits_http import ANSWER, ask, one_request


async def answers_to(body: bytes, *headers: str, status: int = 200, **settings: Any) -> tuple[list[Any], list[Call]]:
    """Three answers from a server that sends `body` with these `headers`, in chunks unless they give its length."""
    chunked = not any(header.lower().startswith("content-length") for header in headers)
    typed = any(header.lower().startswith("content-type") for header in headers)
    head = [f"HTTP/1.1 {status} X", *([] if typed else ["Content-Type: application/json"]), *headers]
    head += ["Transfer-Encoding: chunked"] if chunked else []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await one_request(reader):
            writer.write("\r\n".join([*head, "\r\n"]).encode())
            for at in range(0, len(body), 1000):
                piece = body[at : at + 1000]
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            writer.write(b"0\r\n\r\n" if chunked else b"")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as there:
        url = f"http://127.0.0.1:{there.sockets[0].getsockname()[1]}/v1"
        return await asyncio.to_thread(ask, url, 3, price={"prompt": 1, "completion": 1}, **settings)


def deflated(data: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(ANSWER)),
        ("x-gzip", gzip.compress(ANSWER)),
        ("GZIP", gzip.compress(ANSWER[:90]) + gzip.compress(ANSWER[90:]) + bytes(5)),
        ("deflate", deflated(ANSWER, 15)),
        ("deflate", deflated(ANSWER, -15)),
        ("identity", ANSWER),
    ],
)
async def test_an_answer_that_a_gateway_compressed_is_read(coding: str, body: bytes) -> None:
    for length in ((), (f"Content-Length: {len(body)}",)):
        answers, calls = await answers_to(body, f"Content-Encoding: {coding}", *length)
        assert [answer.response for answer in answers] == ["r"] * 3
        assert [call.prompt_tokens for call in calls] == [20] * 3


LONG = json.dumps({**json.loads(ANSWER), "filler": "x" * (longest_answer(TeacherConfig(model="a/b")))}).encode()


PACKED = gzip.compress(LONG)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, LONG, ()),
        (200, LONG, (f"Content-Length: {len(LONG)}",)),
        (200, PACKED, ("Content-Encoding: gzip",)),
        (200, PACKED, ("Content-Encoding: gzip", f"Content-Length: {len(PACKED)}")),
        (200, deflated(LONG, 15), ("Content-Encoding: deflate",)),
        (400, LONG, ()),
        (400, PACKED, ("Content-Encoding: gzip",)),
    ],
    ids=["chunked", "length", "gzip", "gzip length", "deflate", "400", "400 gzip"],
)
async def test_an_answer_that_is_too_long_is_one_rows_failure_and_is_charged_unless_it_is_an_error(
    body: bytes, headers: tuple[str, ...], status: int
) -> None:
    answers, calls = await answers_to(body, *headers, status=status, retries=3)
    assert all("1.6 MB" in str(answer) for answer in answers), answers
    assert len(calls) == 3, "asked once each"
    ended = (NoAnswer.kind, True) if status == 200 else ("http 400", False)
    assert {(call.outcome, bool(call.cost)) for call in calls} == {ended}


async def test_an_answer_as_long_as_its_tokens_allow_is_read() -> None:
    long = json.loads(ANSWER)
    long["choices"][0]["message"]["content"] = json.dumps({"response": "漢" * 100_000})
    answers, _ = await answers_to(json.dumps(long).encode(), max_tokens=34_000)
    assert [len(answer.response) for answer in answers] == [100_000] * 3
    assert longest_answer(TeacherConfig(model="a/b", max_tokens=16)) == ENVELOPE + 16 * BYTES_A_TOKEN
    with_logprobs = TeacherConfig(model="a/b", max_tokens=16, params={"logprobs": True})
    assert longest_answer(with_logprobs) == ENVELOPE + 16 * (BYTES_A_TOKEN + BYTES_A_LOGPROB)


@pytest.mark.parametrize(
    ("coding", "body", "words"),
    [
        ("br", ANSWER, "br"),
        ("gzip, gzip", gzip.compress(gzip.compress(ANSWER)), "gzip, gzip"),
        ("gzip", ANSWER, "damaged"),
        ("gzip", gzip.compress(ANSWER)[:-9], "ended early"),
    ],
)
async def test_what_cannot_be_decompressed_is_told(coding: str, body: bytes, words: str) -> None:
    answers, _ = await answers_to(body, f"Content-Encoding: {coding}")
    assert all(words in str(answer) and "\n" not in str(answer) for answer in answers), answers


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("headers", [(), ("Content-Length: 0",)], ids=["chunked", "length"])
async def test_an_error_without_a_body_is_what_its_status_says(coding: str, headers: tuple[str, ...]) -> None:
    answers, calls = await answers_to(b"", f"Content-Encoding: {coding}", *headers, status=401)
    assert {(call.outcome, call.cost) for call in calls} == {("http 401", 0)}, answers


@pytest.mark.parametrize("size", [1, 7, 1 << 16, 1 << 20])
async def test_decompression_is_in_small_pieces_however_the_bytes_come(size: int) -> None:
    whole = b"a" * 3_000_000 + bytes(range(256)) * 400
    packed = gzip.compress(whole)

    async def pieces() -> Any:
        for at in range(0, len(packed), size):
            yield packed[at : at + size]

    came = [piece async for piece in inflated(pieces(), "gzip")]
    assert b"".join(came) == whole and max(map(len, came)) <= 1 << 16


WAITS = ["5", "0.5", " 7 ", "000", "3153600000", "Wed, 21 Oct 2026 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"]
NO_WAITS = ["1_0", "nan", "inf", "-1", "1e3", "٣", "+5", "", "soon", "0x10", "9" * 400, "21 Oct ٢٠٢٦ 07:28:00 GMT"]


@pytest.mark.parametrize(("texts", "expected"), [(WAITS, True), (NO_WAITS, False)], ids=["waits", "others"])
def test_a_retry_after_is_seconds_or_a_date(texts: Iterable[str], expected: bool) -> None:
    assert {text: is_wait(text) for text in texts} == dict.fromkeys(texts, expected)


async def test_one_that_is_neither_is_as_if_it_were_not_there() -> None:
    told = await answers_to(b'{"error": {"message": "no"}}', "Retry-After: 3_0", status=500)
    asked = await answers_to(b'{"error": {"message": "no"}}', "Retry-After: 30", status=500)
    assert [getattr(answer, "retry_after", None) for answer in told[0]] == [None] * 3
    assert [getattr(answer, "retry_after", None) for answer in asked[0]] == [30.0] * 3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["interactive", "batch"])
def test_no_answer_fills_the_memory(mode: str) -> None:
    with SimulatedTeacher(latency=0.01) as normal:
        normal.control(batch_seconds=0)
        usual = measured(normal.base_url, mode)["peak"]
    with LongAnswers() as server:
        above = {
            kind: measured(server.url(kind), mode)["peak"] - usual for kind in ("endless", "1 GB", "lists", "gzip")
        }
    assert max(above.values()) <= 100, above


@pytest.mark.parametrize(("status", "is_error"), [(200, True), (499, True), (429, False), (500, False), (502, False)])
def test_a_web_page_is_an_error_of_its_own_where_its_status_says_nothing(status: int, is_error: bool) -> None:
    page: Any = SimpleNamespace(status=status, headers=[("Content-Type", "text/html")])
    transport = WatchedTransport(Connections(), RateLimits(1), 100)
    with pytest.raises(WebPage) if is_error else nullcontext():
        transport._read_headers(page)
