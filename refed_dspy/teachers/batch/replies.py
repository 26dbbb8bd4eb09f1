"""What a batch service replies, as it comes: bounded, so that no reply fills the memory."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import httpx

from refed_dspy.config.keys import without_keys_in
from refed_dspy.teachers.transport import AnswerTooLong, inflated

log = logging.getLogger("refed_dspy.batches")
LONGEST_REPLY = 1 << 24
"""Bytes of a reply about batches; a list of 100 takes 100 KB."""
Lines: TypeAlias = AsyncIterator[dict[str, Any]]
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


async def bound(response: httpx.Response) -> None:
    """A hook of httpx: what is read of `response` is decompressed piece by piece, and bounded unless it is a file,
    whose lines are."""
    coding = response.headers.pop("content-encoding", "").strip().lower()
    is_file = response.status_code < 400 and response.request.url.path.endswith("/content")
    stream = cast(httpx.AsyncByteStream, response.stream)
    response.stream = _Decompressed(stream, coding, None if is_file else LONGEST_REPLY)


class _Decompressed(httpx.AsyncByteStream):
    """The bytes of `stream` without their `coding`. Raises AnswerTooLong where they are more than `most`."""

    def __init__(self, stream: httpx.AsyncByteStream, coding: str, most: int | None) -> None:
        self._stream, self._most = stream, most
        self._chunks = stream if coding in {"", "identity"} else inflated(stream, coding)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        async for chunk in self._chunks:
            length += len(chunk)
            if self._most is not None and length > self._most:
                raise AnswerTooLong(f"its reply is longer than {self._most / 1e6:.0f} MB")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
