"""Starts of a recycling, in this process or by the command, and readers of what it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dspy.lm15 import Request

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.plugins.recycle.result import Recycling
from tests.support import ROOT
from tests.support.command_line import accept_ctrl_c
from tests.support.scripted_engine import references
from tests.support.toy_server import ToyServer

FIELDS = [
    "row", "instruction", "response", "original_instruction", "original_response",
    "instruction_from", "response_from", "instruction_reason", "response_reason",
    "system",
]  # fmt: skip
BY_SCORE = ["ifd", "r_ifd", "original_ifd", "original_r_ifd", "template", "selection_reason"]


def recycled(folder: Path, teacher: Any, data: Any = None, **settings: Any) -> Recycling:
    settings = {"embeddings": False, **settings}
    return refed_dspy.recycle(references(6) if data is None else data, teacher=teacher, out=folder, **settings)


def selective(folder: Path, scoring: ToyServer, teacher: Any, data: Any = None, **settings: Any) -> Recycling:
    scorer = {"model": "toy", "api_base": scoring.url}
    return recycled(folder, teacher, data, selective=True, scorer=scorer, **settings)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def told(made: Recycling) -> list[str]:
    """The lines above its table."""
    return made.lines()[: made.lines().index("")]


def first_pass(request: Request) -> bool:
    """Whether the request belongs to the first pass, which rewrites the instruction."""
    return "new_instruction" in str(request.config.response_format)


def mentions(request: Request, text: str) -> bool:
    return any(text in str(getattr(part, "text", "")) for message in request.messages for part in message.parts)


REFED = [sys.executable, "-m", "refed_dspy.cli"]
COMMAND = [*REFED, "recycle", "data.jsonl", "--teacher", "teacher.yaml", "--out", "out"]


def stopped(
    home: Path, number: signal.Signals, reached: Callable[[], bool], command: Sequence[str] = COMMAND
) -> tuple[int, str]:
    """Start the command and send the signal once `reached` says so: its exit code and its standard error."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=home, stderr=subprocess.PIPE, text=True, preexec_fn=accept_ctrl_c, env=env
    ) as process:
        try:
            while not reached() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(number)
            _, output = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, output


def answers(server: SimulatedTeacher, count: int) -> Callable[[], bool]:
    """Whether the server has answered so often."""
    return lambda: bool(server.stats()["answered"] >= count)
