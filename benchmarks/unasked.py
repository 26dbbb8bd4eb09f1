"""Answers, errors and interim responses that nobody asked for: whose texts do the rows hold?

`python -m benchmarks.unasked [RUNS]`: 60 prompts, 4 at once, through a gateway of each kind (`benchmarks.gateway`),
call by call and in batches. At temperature 0 the simulated server's texts depend on the prompt alone, so each is
compared with what the server says without the gateway.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import refed_dspy
from benchmarks.gateway import KINDS
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import RefedError

PROMPTS = [{"instruction": f"Say something about topic {number}."} for number in range(60)]


@contextmanager
def gateway(upstream: str, kind: str) -> Iterator[str]:
    """The address of a gateway of this kind before `upstream`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gateway", upstream, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.kill()


def texts(address: str, folder: Path, **settings: Any) -> dict[str, str]:
    """Prompt → answer of a model at `address`."""
    teacher = {
        "model": "sim/sim-model", "api_base": address, "concurrency": 4, "temperature": 0.0, "timeout": 10, "retries": 8
    } | settings  # fmt: skip
    made = refed_dspy.answer_prompts(PROMPTS, teacher=teacher, out=folder, progress=False)
    return {row["instruction"]: row["response"] for row in made}


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    wrong = asked = ended = 0
    batch = {"mode": "batch", "batch": {"requests": 20, "quiet": 0.1, "poll": 0.05}}
    with SimulatedTeacher(latency=0.01) as server, tempfile.TemporaryDirectory() as folder:
        server.control(batch_seconds=0.1)
        truth = texts(server.base_url, Path(folder) / "truth")
        for kind in KINDS:
            for mode, settings in (("interactive", {}), ("batch", batch)):
                bad = came = 0
                for number in range(runs):
                    with gateway(server.base_url, kind) as address:
                        try:
                            got = texts(address, Path(folder) / f"{kind} {mode} {number}", **settings)
                        except RefedError as error:
                            ended += 1
                            print(f"  {kind}, {mode}: {error}")
                            continue
                    came += len(got)
                    bad += sum(text != truth[prompt] for prompt, text in got.items())
                print(f"{kind}, {mode}: {came} of {runs * len(PROMPTS)} texts, {bad} of another question", flush=True)
                wrong, asked = wrong + bad, asked + came
    print(f"{asked} texts, {wrong} of another question (must be 0); {ended} runs ended early")


if __name__ == "__main__":
    main()
