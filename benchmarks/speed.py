"""The whole pipeline at full speed: calls a second and client CPU a call, compared with raw aiohttp.

`python -m benchmarks.speed [SAMPLES]`: one process, 256 at once, a server that answers after 100 ms.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.runs import REFERENCES, fresh_run
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.preview import rendered_prompts
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.adapter import rendering
from refed_dspy.records import Reference
from refed_dspy.teachers.requests import fit_bounds

CONCURRENCY = 256


def bodies() -> list[dict[str, Any]]:
    """The request bodies of one sample: a generation and an improvement."""
    program = ReferenceLevelFeedback()
    prompts = rendered_prompts(program, Reference(**REFERENCES[0]))
    made = []
    for stage in ("response_generation", "response_improvement"):
        format_ = fit_bounds(rendering(getattr(program, stage).signature).response_format, True)
        made.append({"model": "sim-model", "messages": prompts[stage], "temperature": 1.0, "max_tokens": 4096,
                     "response_format": format_})  # fmt: skip
    return made


async def raw(url: str, calls: int, own: bool) -> None:
    """The same number of requests with nothing around them but JSON both ways. `own`: each over its own connection."""
    queue, wanted = iter(range(calls)), bodies()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=own)) as session:

        async def worker() -> None:
            for number in queue:
                body = wanted[number % 2]
                async with session.post(url, json=body) as response:
                    await response.json()

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 3_000
    with SimulatedTeacher(latency=0.1, sigma=0.0) as server, tempfile.TemporaryDirectory() as folder:
        fresh_run(server, Path(folder) / "warm", 50, CONCURRENCY)
        cpu = time.process_time()
        fresh_run(server, Path(folder) / "run", samples, CONCURRENCY)
        cpu = time.process_time() - cpu
        stats = server.stats()
        calls = stats["requests"]
        print(
            f"pipeline: {calls / stats['span_s']:.0f} calls/s (>= 800), {1e3 * cpu / calls:.2f} ms CPU a call (<= 1.1)"
        )
        for own, what in ((False, "connections used again"), (True, "a connection for each, as the pipeline has")):
            server.reset()
            cpu = time.process_time()
            asyncio.run(raw(f"{server.base_url}/chat/completions", calls, own))
            cpu = time.process_time() - cpu
            stats = server.stats()
            pace = f"{calls / stats['span_s']:.0f} calls/s, {1e3 * cpu / calls:.2f} ms CPU a call"
            print(f"raw aiohttp, {what}: {pace}, same run")


if __name__ == "__main__":
    main()
