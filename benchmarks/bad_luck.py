"""200 questions to an endpoint that refuses some at random (`Retry-After: 1`), beside a client whose calls wait alone.

`python -m benchmarks.bad_luck`
"""

from __future__ import annotations

import asyncio
import time
from statistics import median

import aiohttp

from benchmarks.limits import ask_all
from benchmarks.simulated import SimulatedTeacher

REQUESTS, CONCURRENCY, TRIES = 200, 40, 3


async def naive(server: SimulatedTeacher) -> int:
    """Ask all questions, 40 at once; who is refused sleeps for as long as it is told, and asks again."""
    places = asyncio.Semaphore(CONCURRENCY)

    async def ask(number: int) -> None:
        body = {"model": "sim-model", "messages": [{"role": "user", "content": f"number {number}"}]}
        while True:
            async with places, session.post(f"{server.base_url}/chat/completions", json=body) as response:
                await response.read()
            if response.status != 429:
                return
            await asyncio.sleep(float(response.headers["Retry-After"]))

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*map(ask, range(REQUESTS)))
    return REQUESTS


async def ours(server: SimulatedTeacher) -> int:
    return await ask_all(server, REQUESTS, CONCURRENCY)


def main() -> None:
    for share in (0.0, 0.02, 0.1, 0.3):
        seconds = {}
        for client in (naive, ours):
            with SimulatedTeacher(latency=0.06, sigma=0.3) as server:
                taken = []
                for seed in range(TRIES):
                    server.control(faults={"429": share}, retry_after=1, seed=seed)
                    began = time.monotonic()
                    assert asyncio.run(client(server)) == REQUESTS
                    taken.append(time.monotonic() - began)
                seconds[client] = median(taken)
        times = seconds[ours] / seconds[naive]
        print(f"{share:.0%} refused: {seconds[ours]:.1f} s, alone {seconds[naive]:.1f} s: {times:.2f} x (<= 1.5)")


if __name__ == "__main__":
    main()
