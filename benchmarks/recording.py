"""Client CPU a call of a plain `dspy.Predict`: under `recording`, and on a `dspy.LM` without cache, in turns.

`python -m benchmarks.recording`: half a minute. The first round warms up and does not count.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import tempfile
import time
from collections.abc import Callable

import dspy

import refed_dspy
from benchmarks.simulated import SimulatedTeacher

CALLS, AT_ONCE, ROUNDS, MOST = 500, 32, 6, 0.6
LATENCY = 0.05


class Answering(dspy.Signature):  # type: ignore[misc]
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def awaited(questions: list[str]) -> None:
    """One event loop."""

    async def all_of() -> None:
        slots, predict = asyncio.Semaphore(AT_ONCE), dspy.Predict(Answering)

        async def one(question: str) -> None:
            async with slots:
                await predict.acall(question=question)

        await asyncio.gather(*map(one, questions))

    asyncio.run(all_of())


def in_threads(questions: list[str]) -> None:
    """As `dspy.Evaluate` and the optimizers ask."""
    predict = dspy.Predict(Answering)
    pairs = [(predict, dspy.Example(question=question).with_inputs("question")) for question in questions]
    dspy.Parallel(num_threads=AT_ONCE, disable_progress_bar=True)(pairs)


def measured(server: SimulatedTeacher, ask: Callable[[list[str]], None], questions: list[str]) -> tuple[float, float]:
    """Milliseconds of CPU a call: on a plain `dspy.LM`, and under `recording`."""
    name = "openai/gpt-4o-mini"
    plain = dspy.LM(name, api_base=server.base_url, api_key="sk-none", cache=False, max_tokens=64)
    began = time.process_time()
    with dspy.context(lm=plain, adapter=dspy.JSONAdapter()):
        ask(questions)
    between = time.process_time()
    teacher = {"model": name, "api_base": server.base_url, "max_tokens": 64}
    with tempfile.TemporaryDirectory() as folder, refed_dspy.recording(folder, teacher=teacher):
        ask(questions)
    each = 1_000 / len(questions)
    return (between - began) * each, (time.process_time() - between) * each


def main() -> int:
    logging.disable(logging.ERROR)
    worst = 0.0
    with SimulatedTeacher(latency=LATENCY, sigma=0) as server:
        server.control(response_words=4)
        for ask in (awaited, in_threads):
            rounds = [
                measured(server, ask, [f"{ask.__name__} {number} {n}" for n in range(CALLS)])
                for number in range(ROUNDS + 1)
            ][1:]
            plain, recorded = (statistics.median(values) for values in zip(*rounds, strict=True))
            ratio = statistics.median(ours / theirs for theirs, ours in rounds)
            worst = max(worst, ratio)
            print(f"{ask.__name__}: dspy.LM {plain:.2f} ms, recording {recorded:.2f} ms, {ratio:.2f} ×")
    return int(worst > MOST)


if __name__ == "__main__":
    raise SystemExit(main())
