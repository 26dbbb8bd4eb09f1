"""The command killed while Arena-Hard's code asks: nothing is paid for twice, and no process is left."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.runs.evaluation.alpaca_eval.test_killed import AT_ONCE, at_work, kept
from tests.runs.evaluation.arena_hard.conftest import QUESTIONS
from tests.runs.recycle.helpers import REFED, answers, requests, stopped

GAMES = 2 * 2 * QUESTIONS


@pytest.mark.slow
def test_killed_it_goes_on_and_pays_no_answer_twice(home: Path, toy_python: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.1, sigma=0.3)
    files = ["--answers", "short.jsonl", "--answers", "long.jsonl", "--judge", "judge.yaml", "--out", "out"]
    command = [*REFED, "evaluate", "arena-hard", "--clone", "clone", *files, "--environment", str(toy_python)]
    assert stopped(home, signal.SIGKILL, answers(server, 20), command)[0] == -signal.SIGKILL
    time.sleep(1)
    assert not at_work(toy_python), "the code ends with the command"
    lost = requests(server) - kept(home)
    assert kept(home) >= 20 - AT_ONCE and lost <= AT_ONCE, "at most what was in flight is lost"
    for _ in range(2):
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.count(f"  {QUESTIONS}  ") == 2, done.stderr
        assert requests(server) == GAMES + lost, "the second start asks nothing"
