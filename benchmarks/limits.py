"""900 requests to an endpoint that takes 600 a minute: answers kept, 429s, time against the floor.

`python -m benchmarks.limits`
"""

from __future__ import annotations

import asyncio

import dspy

from benchmarks.runs import teacher_config
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.recorded import recorded_lm

REQUESTS, PER_MINUTE, CONCURRENCY = 900, 600, 64
FLOOR = 60 * (REQUESTS - PER_MINUTE) / PER_MINUTE
"""Seconds at best: a minute's worth may be asked at once, the rest as the limit allows."""


async def ask_all(server: SimulatedTeacher, requests: int = REQUESTS, concurrency: int = CONCURRENCY) -> int:
    """Ask all questions at once. Returns how many were answered."""
    teacher = open_teacher(teacher_config(server, concurrency))
    async with teacher.running() as engine:
        with dspy.context(lm=recorded_lm(teacher, engine), adapter=SchemaAdapter(), disable_history=True, trace=None):
            predict = dspy.Predict("question -> answer")
            asked = (predict.acall(question=f"number {i}") for i in range(requests))
            answers = await asyncio.gather(*asked, return_exceptions=True)
    return sum(not isinstance(answer, BaseException) for answer in answers)


def measure(what: str, **settings: object) -> None:
    with SimulatedTeacher(latency=0.1, sigma=0.3) as server:
        server.control(limit_per_minute=PER_MINUTE, **settings)
        server.reset()
        kept = asyncio.run(ask_all(server))
        stats = server.stats()
        refused = stats["by_status"].get("429", 0)
        span = stats["span_s"]
        counts = f"{kept} of {REQUESTS} kept, {refused} refused (<= 60)"
        print(f"{what}: {counts}, {span:.1f} s = {span / FLOOR:.2f} x the floor (<= 1.15)")


def main() -> None:
    measure("limits in headers")
    measure("Retry-After alone", rate_headers=False)


if __name__ == "__main__":
    main()
