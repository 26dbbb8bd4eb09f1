"""Nonsense of 1.5 MB as answers: how long the event loop stands still at most, and whether the other rows suffer.

`python -m benchmarks.nonsense [KIND …]`: for each kind a run with concurrency 4, guards and filters, against a server
in a process of its own, one of whose answers in six is nonsense: as the whole answer, as a text in the JSON that was
asked for, or in all of its texts. A ticker in the loop says how long it stood still. About six minutes.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.long_answers import Served

LENGTH = 1_500_000
"""Bytes of nonsense, about."""
EVERY = 6
"""One answer in so many is nonsense."""
SIZE = 24
UNITS: Mapping[str, str] = {
    "newlines": "\n", "carriage returns": "\r\n", "spaces": " ", "tabs": "\t", "indented lines": "\n ",
    "no-break spaces": "\xa0", "zero-width": "\u200b", "brackets": "[", "bracket pairs": "[]", "braces": "{",
    "brace pairs": "{}", "closing braces": "}", "parentheses": "(", "angles": "<", "closing tags": "</",
    "tags": "<example>", "quotes": '"', "curly quotes": "“", "apostrophes": "'", "a's": "a'", "backslashes": "\\",
    "escapes": "\\u0041", "half escapes": "\\u", "think": "<think>", "closed thoughts": "</think>",
    "thoughts": "<think></think>", "fields": "[[ ## response ## ]]\n", "cut fields": "[[ ## ",
    "openings": '{"a":"', "objects": '{"a":1}', "lists": '{"a":[', "fences": "```", "fence lines": "\n```python\n",
    "ticks": "` ", "digits": "7", "numbered": "1. ", "numbered lines": "1.\n", "table": "| a | b |\n|---|---|\n",
    "stars": "*", "bold": "**a", "underscores": "_", "hashes": "#", "dashes": "- ", "dots": ".",
    "colons": "the following: ",
    "addresses": "http://", "one word": "a", "capitals": "A", "words": "the reference ", "short words": "a b ",
    "CJK": "漢", "marks": "e\u0301\u0302", "marks alone": "\u0301", "emoji": "👩‍👩‍👧",
    "flags": "🇩", "half pairs": "\ud800",
    "slots": "[your ", "refusals": "i cannot ", "commas": ",", "please": "please ", "equals": "=", "at": "@a.",
    "ampersands": "&amp;", "NUL": "\0", "right to left": "\u202e",
}  # fmt: skip
"""What is repeated."""


@functools.cache
def nonsense(kind: str, length: int = LENGTH) -> str:
    """About `length` bytes of this kind."""
    if kind == "thoughts before openings":
        return "<think>" + nonsense("openings", length)
    if kind == "thoughts before objects":
        return "<think>" + nonsense("objects", length) + "x"
    if kind == "objects between thoughts":
        return "</think>{}".join([""] * (length // 10))
    if kind == "random letters":
        return "".join(random.Random(0).choices("abcdefghij KLM.,\n", k=length))
    if kind == "random characters":
        return "".join(map(chr, random.Random(0).choices(range(32, 0xD000), k=length // 3)))
    unit = UNITS[kind]
    return unit * (length // len(unit.encode("utf-8", "surrogatepass")))


KINDS = (
    *UNITS, "thoughts before openings", "thoughts before objects", "objects between thoughts", "random letters",
    "random characters",
)  # fmt: skip


# --- the server, in a process of its own


class Nonsense(Served):
    """`url(kind)`: where one answer in EVERY is of that kind."""

    @staticmethod
    def serve(pipe: Connection) -> None:
        _serve(pipe)

    def url(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.port}/{KINDS.index(kind)}/v1"


def _serve(pipe: Connection) -> None:
    numbers = count(1)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            request = json.loads(await reader.readexactly(int(length[1]) if length else 0))
            kind = KINDS[int(head.split(b" ", 2)[1].split(b"/")[1])]
            body = json.dumps(_completion(request, kind, next(numbers))).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def _completion(request: Mapping[str, Any], kind: str, number: int) -> dict[str, Any]:
    """An answer by the request's schema, or nonsense: turn by turn bare, in its first text, and in all of its texts."""
    shape = request["response_format"]["json_schema"]["schema"]
    turn = number // EVERY % 3 if number % EVERY == 0 else None
    text = nonsense(kind) if turn == 0 else json.dumps(_filled(shape, shape, _texts(kind, turn, number)))
    message = {"role": "assistant", "content": text}
    said, read = (len(each.encode("utf-8", "replace")) // 3 for each in (text, json.dumps(request["messages"])))
    usage = {"prompt_tokens": read, "completion_tokens": said}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


def _texts(kind: str, turn: int | None, number: int) -> Iterator[str]:
    """The texts of an answer, one after the other."""
    if turn == 1:
        yield nonsense(kind)
    for place in count():
        word = f"Describe the {number}th thing of {place} and say what it is for."
        yield f"{nonsense(kind, LENGTH // 40)} {word}" if turn == 2 else word


def _filled(shape: Any, root: Any, texts: Iterator[str]) -> Any:
    """A value of this schema with these texts; lists of ten."""
    if "$ref" in shape:
        return _filled(root["$defs"][shape["$ref"].rsplit("/", 1)[-1]], root, texts)
    if "properties" in shape:
        return {name: _filled(inner, root, texts) for name, inner in shape["properties"].items()}
    if shape.get("type") == "array":
        return [_filled(shape["items"], root, texts) for _ in range(10)]
    return next(texts)


# --- the client


async def _ticking(stood: list[float], rate: float = 0.005) -> None:
    """Note how long the loop stood still each time: by the clock, but no longer than this process had the processor, so
    that others on the machine do not count."""
    while True:
        began, busy = time.perf_counter(), time.process_time()
        await asyncio.sleep(rate)
        stood.append(min(time.perf_counter() - began - rate, time.process_time() - busy))


async def measured(url: str, folder: Path) -> tuple[float, Any]:
    """(The longest that the loop stood still, the run) of a run against `url`."""
    import refed_dspy
    from benchmarks.runs import REFERENCES
    from refed_dspy import TeacherConfig

    teacher = TeacherConfig.model_validate(
        {"model": "openai/x", "api_base": url, "concurrency": 4, "timeout": 20, "retries": 0, "max_tokens": 65_536}
    )
    filters: list[Any] = [
        "refusals",
        {"language": {"allowed": ["en"]}},
        "near_duplicates",
        {"length": {"min_words": 3}},
    ]
    stood = [0.0]
    ticker = asyncio.create_task(_ticking(stood))
    made = await refed_dspy.asynthesize(
        None, REFERENCES[:8], size=SIZE, teacher=teacher, run_dir=folder, filters=filters, progress=False, track=False,
        max_failure_share=1,
    )  # fmt: skip
    ticker.cancel()
    return max(stood), made


def main() -> None:
    os.environ["OPENAI_API_KEY"] = "sk-bench-Zq3xW8vL0pRt5yNc7mKd"
    worst = 0.0
    with Nonsense() as server:
        for kind in sys.argv[1:] or KINDS:
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                stood, made = asyncio.run(measured(server.url(kind), Path(folder) / "run"))
            failed = Counter(failure.kind for failure in made.failures)
            took = time.perf_counter() - began
            samples = f"{len(made.samples)} samples in {took:.0f} s"
            print(f"{kind}: stood still {stood:.3f} s at most; {samples}; {dict(failed)}", flush=True)
            worst = max(worst, stood)
    print(f"at most {worst:.3f} s")


if __name__ == "__main__":
    main()
