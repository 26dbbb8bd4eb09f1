"""Files and replies of a batch service: read line by line, and no further than they can be long."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import AsyncIterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from aiohttp import web

from refed_dspy.programs.lm_errors import BatchOutOfReach
from refed_dspy.teachers.batch.http import LONGEST_REPLY
from refed_dspy.teachers.batch.service import json_lines
from refed_dspy.teachers.transport import longest_answer
from tests.support.said import Said
from tests.support.scripted_batches import (
    COST,
    ScriptedService,
    ask_all,
    asked,
    body,
    calls,
    client,
    line,
    one_start,
    recorded_teacher,
    teacher_config,
    written,
)


async def in_pieces(data: bytes, rng: random.Random) -> AsyncIterator[bytes]:
    while data:
        size = rng.choice((1, 2, 17, 1000))
        yield data[:size]
        data = data[size:]


@pytest.mark.parametrize("seed", range(20))
async def test_lines_are_the_same_however_the_bytes_come(seed: int) -> None:
    rng = random.Random(seed)
    texts = [
        "",
        " ",
        "null",
        "[1]",
        "{not",
        "[" * 300,
        '{"a": "\u2028\x85"}',
        '{"b": 1}\r',
        json.dumps({"c": "x" * 400}),
    ]
    lines = [rng.choice(texts) for _ in range(30)]
    data = "\n".join(lines).encode() + rng.choice((b"", b"\n"))
    came = [value async for value in json_lines(in_pieces(data, rng), 300, 30)]
    expected: list[object] = []
    for text in lines:
        if text.strip():
            value = json.loads(text) if text[0] == "{" and text != "{not" and len(text) <= 300 else {}
            expected.append(value)
    assert came == expected


async def test_a_file_is_read_no_further_than_its_answers_can_be_long(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"{}\n" * 100

    assert 0 < len([value async for value in json_lines(endless(), 3000, 9)]) <= 10_200
    said(caplog.text)


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_a_last_line_of_just_the_length_is_read_and_a_longer_one_counted(
    said: Said, end: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = {"a": "x" * 41}
    data = json.dumps(answer).encode() + end
    assert [value async for value in json_lines(in_pieces(data, random.Random(0)), 50, 9)] == [answer]
    assert not caplog.records
    assert [value async for value in json_lines(in_pieces(b"{}\n" + data, random.Random(0)), 49, 9)] == [{}, {}]
    said(caplog.text)


@pytest.mark.parametrize("more", [0, 1])
async def test_the_bound_is_kept_to_the_byte(service: ScriptedService, more: int) -> None:
    reply = web.Response(body=b" " * (LONGEST_REPLY - 2 + more) + b"{}", content_type="application/json")
    service.hooks["list"] = [lambda: reply]
    async with client(teacher_config(service)) as there:
        with pytest.raises(BatchOutOfReach) if more else nullcontext():
            await there.exists()


async def test_an_answer_that_is_too_long_is_left_out_and_the_others_are_read(
    said: Said, service: ScriptedService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = teacher_config(service, retries=0)

    def one_long(lines: object) -> tuple[bytes, None]:
        texts = {request["custom_id"]: asked(request) for request in lines}  # type: ignore[attr-defined]
        long = "x" * longest_answer(config)
        return written(*(line(n, body(long if text == "b" else text)) for n, text in texts.items())), None

    service.answers = [one_long]
    async with recorded_teacher(tmp_path, config) as recorded:
        first, second, third = await ask_all(recorded, ["a", "b", "c"])
    assert (first, third) == ("a", "c") and isinstance(second, Exception)
    said(caplog.text)
    taken = calls(tmp_path)
    assert taken["ok", COST] == 2 and taken.total() == 3 and (None not in {cost for _, cost in taken})


async def test_a_compressed_file_is_read(service: ScriptedService, tmp_path: Path) -> None:
    def compressed() -> web.Response:
        (content,) = service.files.values()
        return web.Response(body=gzip.compress(content), headers={"Content-Encoding": "gzip"})

    service.hooks["download"] = [compressed]
    assert await one_start(tmp_path, service, ["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_reply_without_end_is_not_read_on(said: Said, service: ScriptedService, compressed: bool) -> None:
    long = json.dumps({"id": "b", "filler": "x" * LONGEST_REPLY}).encode()
    headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if compressed else {})
    data = gzip.compress(long) if compressed else long
    service.hooks["look"] = [lambda: web.Response(body=data, headers=headers)]
    async with client(teacher_config(service)) as there:
        with said.by(BatchOutOfReach):
            await there.look("b")
    assert service.calls["look"] == 1
