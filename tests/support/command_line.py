"""The command line as a person meets it: in this process, in a folder of its own, and what a refusal must look like."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.main import app

DOWN = "model: sim/x\napi_base: http://127.0.0.1:9/v1\nretries: 0\n"
REFED = [sys.executable, "-m", "refed_dspy.cli"]


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return name


def judge_file(folder: Path, server: SimulatedTeacher, **settings: Any) -> str:
    values = {"model": "sim/other-model", "api_base": server.base_url, "retries": 0, **settings}
    return written(folder, "judge.yaml", "".join(f"{key}: {value}\n" for key, value in values.items()))


def teacher_file(home: Path, server: SimulatedTeacher, **settings: Any) -> Path:
    values = {"model": "sim/sim-model", "api_base": server.base_url, "retries": 1, "timeout": 20, **settings}
    path = home / "teacher.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return path


def refed(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def synth(*more: object) -> Result:
    return refed("synth", "--references", "references.jsonl", "--run-dir", "run", *more)


def refused(result: Result, *expected: str, code: int = 2) -> None:
    """One line on stderr that says all of `expected`, and the exit code; before it, progress of a run that had begun,
    where it is bad input only what the run would have taken. Nothing on stdout then."""
    assert result.exit_code == code, result.output
    *progress, line = result.stderr.splitlines()
    assert line.startswith("refed: ") and not any(told.startswith("refed: ") for told in progress), result.stderr
    progress = [told for told in progress if code != 2 or ": about " not in told]
    assert "Traceback" not in result.output and not (code == 2 and (progress or result.stdout))
    for text in expected:
        assert text in line


def refusal(result: Result, code: int = 2) -> str:
    """The line of a command that refuses: see `refused`."""
    refused(result, code=code)
    return result.stderr.splitlines()[-1]


def without_numbers(text: str) -> str:
    """What is told of figures that depend on the order of answers."""
    return re.sub(r"\d[\d,.]*\d|\d", "N", text)


def accept_ctrl_c() -> None:
    """SIGINT as in a terminal; a process in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
