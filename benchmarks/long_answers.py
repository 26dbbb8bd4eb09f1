"""Answers without end, and small ones that decompress to much: the client's peak memory above a normal run's.

`python -m benchmarks.long_answers [KIND …]`: each kind against a server that sends nothing else, interactive and as the
file of each service's batches, each in a process of its own. Of a folder it is a file of 1 GB. About eight minutes.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any, Self

PIECE = 1 << 16
LONG = 1_000_000_000
"""Bytes of the answer that says beforehand how long it is."""
_START = b'{"id": "1", "object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": {"content": "'


def _chunks(count: int | None = None) -> Iterator[bytes]:
    """Pieces of one text in JSON, for ever or so many."""
    yield _START
    for _ in itertools.count() if count is None else range(count):
        yield b"x" * PIECE


@functools.cache
def _compressed(wbits: int, times: int = 1) -> Sequence[bytes]:
    """400 MB of text in 400 KB, or less where it is compressed twice."""
    pieces = list(_chunks(400_000_000 // PIECE))
    for _ in range(times):
        packer = zlib.compressobj(9, wbits=wbits)
        pieces = [packed for piece in pieces if (packed := packer.compress(piece))] + [packer.flush()]
    return pieces


def _small_lines() -> Iterator[bytes]:
    while True:
        yield b'{"custom_id": "call-1", "response": {"status_code": 200, "body": {}}}\n' * 900


def _empty_lists() -> Iterator[bytes]:
    """JSON that takes twenty times its size in memory."""
    yield b'{"id": "1", "choices": ['
    while True:
        yield b"[]," * 20_000


Pieces = Callable[[], Iterable[bytes]]
KINDS: dict[str, tuple[Mapping[str, str], Pieces]] = {
    "endless": ({"Transfer-Encoding": "chunked"}, _chunks),
    "until closed": ({}, _chunks),
    "1 GB": ({"Content-Length": str(LONG)}, _chunks),
    "lists": ({"Transfer-Encoding": "chunked"}, _empty_lists),
    "gzip": ({"Transfer-Encoding": "chunked", "Content-Encoding": "gzip"}, partial(_compressed, 31)),
    "deflate": ({"Transfer-Encoding": "chunked", "Content-Encoding": "deflate"}, partial(_compressed, 15)),
    "gzip twice": ({"Transfer-Encoding": "chunked", "Content-Encoding": "gzip, gzip"}, partial(_compressed, 31, 2)),
    "lines": ({"Transfer-Encoding": "chunked"}, _small_lines),
}
"""How a body is sent, and the pieces of it."""
BATCH = {"id": "b", "object": "batch", "status": "completed", "output_file_id": "out", "input_file_id": "in",
         "created_at": 1, "endpoint": "/v1/chat/completions", "completion_window": "24h"}  # fmt: skip
MESSAGES = {"id": "b", "type": "message_batch", "processing_status": "ended", "created_at": "2026-01-01T00:00:00Z",
            "request_counts": {"processing": 0, "succeeded": 20}, "results_url": "x"}  # fmt: skip
OPERATION = {"name": "batches/b", "done": True, "response": {"responsesFile": "files/out"},
             "metadata": {"state": "BATCH_STATE_SUCCEEDED", "batchStats": {"requestCount": "20"}}}  # fmt: skip
MODELS = {"batch": "sim/x", "anthropic": "anthropic/x", "gemini": "gemini/x", "folder": "vllm/x"}
"""How a batch is sent → the model's name."""
FILE = {"id": "in", "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch",
        "status": "processed"}  # fmt: skip


class Served:
    """A server in a process of its own: `serve` sends the port that it listens at."""

    serve: Callable[[Connection], None]

    def __enter__(self) -> Self:
        ours, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=self.serve, args=(theirs,), daemon=True)
        self._process.start()
        self.port: int = ours.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


class LongAnswers(Served):
    """`url(kind)`: where every answer is of that kind."""

    @staticmethod
    def serve(pipe: Connection) -> None:
        _serve(pipe)

    def url(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.port}/{kind.replace(' ', '_')}/v1"


def _serve(pipe: Connection) -> None:
    async def main() -> None:
        server = await asyncio.start_server(_handle, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


async def _handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        _, path, _ = head.split(b" ", 2)
        kind = path.decode().split("/")[1].replace("_", " ")
        if path.endswith((b"/chat/completions", b"/content", b"/results", b":download?alt=media")):
            await _send(writer, *KINDS[kind])
        else:
            body = json.dumps(_reply(path.decode())).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Goog-Upload-URL: " + path + b"\r\n")
            writer.write(f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


def _reply(path: str) -> dict[str, Any]:
    """What a service says of its files and batches."""
    if "/v1beta" in path:
        return {"file": {"name": "files/in", "state": "ACTIVE"}} if "/files" in path else OPERATION
    if "/messages" in path:
        return {"data": []} if "?" in path else MESSAGES
    return FILE if "/files" in path else {"data": [], "has_more": False} if "?" in path else BATCH


async def _send(writer: asyncio.StreamWriter, headers: Mapping[str, str], pieces: Pieces) -> None:
    fields = {"Content-Type": "application/json", "Connection": "close", **headers}
    writer.write("".join(["HTTP/1.1 200 OK\r\n", *(f"{k}: {v}\r\n" for k, v in fields.items()), "\r\n"]).encode())
    for piece in pieces():
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if "Transfer-Encoding" in headers else piece)
        await writer.drain()
        await asyncio.sleep(0)
    if "Transfer-Encoding" in headers:
        writer.write(b"0\r\n\r\n")
        await writer.drain()


# --- the client


def client(url: str, mode: str, folder: str) -> None:
    """A run against `url`; prints its last words and its peak memory in MB."""
    import resource

    import refed_dspy
    from benchmarks.runs import REFERENCES
    from refed_dspy import TeacherConfig
    from refed_dspy.errors import RefedError

    batch: Any = {"quiet": 0.05, "poll": 0.05}
    where: Any = {"model": MODELS.get(mode, "sim/x"), "api_base": url, "mode": "batch" if mode in MODELS else mode}
    if mode == "gemini":
        where["api_base"] = url.removesuffix("/v1") + "/v1beta"
    elif mode == "folder":
        where = {"model": MODELS[mode], "mode": mode}
        batch["folder"] = f"{folder}-answers"
        Thread(target=_long_file, args=(Path(batch["folder"]),), daemon=True).start()
    teacher = TeacherConfig.model_validate({**where, "retries": 0, "batch": batch, "concurrency": 32})
    try:
        made = refed_dspy.synthesize(None, REFERENCES, size=20, teacher=teacher, run_dir=folder)
        words = f"{len(made.samples)} samples; {made.reason}; {made.failures[:1]}"
    except RefedError as error:
        words = str(error)
    print(json.dumps({"words": words, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def _long_file(folder: Path) -> None:
    """Answer the first file of requests there with a file of 1 GB."""
    while not (asked := list(folder.glob("*.requests.jsonl"))):
        time.sleep(0.05)
    lines, written = _small_lines(), 0
    with asked[0].with_name(asked[0].name.replace(".requests.", ".answers.")).open("wb") as file:
        while written < LONG:
            written += file.write(next(lines))


def measured(url: str, mode: str) -> dict[str, Any]:
    """What a run in a process of its own says (`words`), and its `peak` memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.long_answers", "client", url, mode, f"{folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    if sys.argv[1:2] == ["client"]:
        client(*sys.argv[2:5])
        return
    from benchmarks.simulated import SimulatedTeacher

    for mode in ("interactive", *MODELS):
        with SimulatedTeacher(latency=0.01) as normal:
            normal.control(batch_seconds=0)
            usual = measured(normal.base_url, "batch" if mode == "folder" else mode)["peak"]
        print(f"{mode}: a normal run takes {usual:.0f} MB at most")
        with LongAnswers() as server:
            for kind in ["1 GB"] if mode == "folder" else sys.argv[1:] or KINDS:
                result = measured(server.url(kind), mode)
                print(f"  {kind}: {result['peak'] - usual:+.0f} MB; {result['words'][:300]}", flush=True)


if __name__ == "__main__":
    main()
