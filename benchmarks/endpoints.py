"""Two endpoints that serve the same model name, used at once, twice: whose answers does each run hold?

`python -m benchmarks.endpoints`
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import refed_dspy
from benchmarks.runs import REFERENCES, teacher_config
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.runs.result import Synthesis

SIZE = 200


async def both(servers: dict[str, SimulatedTeacher], home: Path) -> dict[str, Synthesis]:
    runs = (
        refed_dspy.asynthesize(None, REFERENCES, size=SIZE, teacher=teacher_config(server, 40), run_dir=home / name)
        for name, server in servers.items()
    )
    return dict(zip(servers, await asyncio.gather(*runs), strict=True))


def main() -> None:
    with (
        SimulatedTeacher(latency=0.02) as northern,
        SimulatedTeacher(latency=0.02) as southern,
        tempfile.TemporaryDirectory() as folder,
    ):
        servers = {"northern": northern, "southern": southern}
        for name, server in servers.items():
            server.control(signature=name)
        mixed = 0
        for again in range(2):
            made = asyncio.run(both(servers, Path(folder) / str(again)))
            for name, run in made.items():
                texts = [sample.improved_response for sample in run.samples]
                mixed += sum(not text.startswith(name) for text in texts)
                assert len(texts) == SIZE
        calls = {name: server.stats()["answered"] for name, server in servers.items()}
    print(f"{4 * SIZE} rows of four runs: {mixed} hold the other endpoint's text (must be 0); calls {calls}")


if __name__ == "__main__":
    main()
