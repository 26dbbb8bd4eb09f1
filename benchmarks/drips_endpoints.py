"""Services that drip, never end or never answer: how long does each client wait, and how soon does Ctrl-C end it?

`python -m benchmarks.drips_endpoints [STEP …]`: `timeout: 2` and one retry. A teacher, each step of a batch, a list of
batches whose pages do not end, and a scorer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

TIMEOUT, RETRIES = 2.0, 1
MOST = 3 * TIMEOUT * (RETRIES + 1)
WAYS = ("drip", "endless", "silent")
STEPS = ("upload", "create", "poll", "download")
BATCH = {"id": "b", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "f", "created_at": 1}
BATCH |= {"completion_window": "24h", "status": "completed", "output_file_id": "o"}


class Service:
    """Answers as a batch service and a scorer do, but for one step, which is spoiled in one of the WAYS."""

    def __init__(self, step: str, way: str) -> None:
        self.step, self.way = step, way

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        step, answer = self.asked(request)
        await request.read()
        if (step, self.step) == ("create", "list"):  # then it looks for the batch before it makes another
            return web.json_response({"error": {"message": "try again"}}, status=500)
        if step != self.step:
            return web.json_response(answer)
        if self.way == "pages":
            page = [
                BATCH | {"id": f"b{time.monotonic_ns()}-{n}", "input_file_id": "g", "created_at": 1 << 33}
                for n in range(100)
            ]
            return web.json_response({"object": "list", "data": page, "has_more": True, "last_id": page[-1]["id"]})
        if self.way == "silent":
            await asyncio.sleep(600)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        with contextlib.suppress(ConnectionError):
            await response.prepare(request)
            while True:
                await response.write(b" " if self.way == "drip" else b" " * 60_000)
                await asyncio.sleep(0.5 if self.way == "drip" else 0.001)
        return response

    def asked(self, request: web.BaseRequest) -> tuple[str, Any]:
        """(Step, answer) of a request."""
        path, posts = request.path, request.method == "POST"
        if path.endswith("/tokenize"):
            return "tokenize", {"tokens": [1, 2, 3], "max_model_len": 4096}
        if path.endswith("/completions"):
            return "chat", {"choices": []}
        if path.endswith("/content"):
            return "download", {}
        if path.endswith("/files"):
            return "upload", {"id": "f", "object": "file", "status": "processed"}
        if path.endswith("/batches"):
            return ("create", BATCH) if posts else ("list", {"object": "list", "data": [], "has_more": False})
        return "poll", BATCH


async def serve(step: str, way: str) -> None:
    server = web.Server(Service(step, way).handle, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.sleep(3600)


@contextlib.contextmanager
def service(step: str, way: str) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.drips_endpoints", "serve", step, way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def job(address: str, client: str, folder: Path) -> list[str]:
    """The command by which `client` asks the service."""
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"instruction": "Name a colour.", "response": "Blue."}) + "\n")
    if client == "scorer":
        code = (
            "import sys; from refed_dspy.plugins.metrics.endpoint_scorer import EndpointScorer\n"
            f"try: EndpointScorer('m', {address!r}, timeout={TIMEOUT}).nll([''], ['text'])\n"
            "except Exception as error: sys.exit(str(error))"
        )
        return [sys.executable, "-c", code]
    teacher = {"model": "a/b", "api_base": address, "timeout": TIMEOUT, "retries": RETRIES}
    if client == "batch":
        teacher |= {"mode": "batch", "batch": {"quiet": 0.05, "poll": 0.2}}
    (config := folder / "config.json").write_text(json.dumps({"prompts": str(rows), "teacher": teacher}))
    out = ["--config", str(config), "--out", str(folder / "out")]
    return [sys.executable, "-m", "refed_dspy.cli", "evaluate", "answers", *out]


def waited(command: list[str], stop_after: float | None) -> tuple[float, str]:
    """Seconds until the command ended, or since it was interrupted; its exit code, and what it said last."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        if stop_after is not None:
            time.sleep(stop_after)
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            return 60.0, "killed"
        return time.monotonic() - began, f"{process.returncode}: {said.strip()[-200:]}"


def main() -> None:
    only = sys.argv[1:]
    asked = [("teacher", "chat", way) for way in WAYS] + [("scorer", "tokenize", way) for way in WAYS]
    asked += [("batch", step, way) for step in STEPS for way in WAYS] + [("batch", "list", "pages")]
    asked = [one for one in asked if not only or one[1] in only]
    longest = slowest = 0.0
    idle = waited(
        [sys.executable, "-m", "refed_dspy.cli", "synth", "--dry-run", "--teacher", "simulated", "--size", "2"], None
    )[0]
    for client, step, way in asked:
        with service(step, way) as address, tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            seconds, code = waited(job(address, client, Path(one)), None)
            stopped, _ = waited(job(address, client, Path(two)), 2 * idle + 1.5)
        print(f"{client}, {step}, {way}: {seconds - idle:.1f} s, Ctrl-C {stopped:.1f} s; exit {code}", flush=True)
        longest, slowest = max(longest, seconds - idle), max(slowest, stopped)
    print(f"longest wait {longest:.1f} s (must be at most {MOST:g}); Ctrl-C {slowest:.1f} s (2.5)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(sys.argv[2], sys.argv[3]))
    else:
        main()
