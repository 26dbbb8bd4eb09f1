"""The command killed or stopped with Ctrl-C while the code asks: nothing is paid for twice, and no process is left."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from tests.runs.evaluation.alpaca_eval.conftest import outputs
from tests.runs.recycle.helpers import REFED, answers, requests, stopped

SIZE = 60
AT_ONCE = 6


@pytest.fixture
def command(home: Path, toy: Path, server: SimulatedTeacher) -> list[str]:
    for name in ("mine", "theirs"):
        (home / f"{name}.json").write_text(json.dumps(outputs(name, SIZE)), "utf-8")
    server.control(latency=0.08, sigma=0.3)
    files = ["--outputs", "mine.json", "--baseline", "theirs.json", "--judge", "judge.yaml", "--out", "out"]
    return [*REFED, "evaluate", "alpaca-eval", *files, "--environment", str(toy)]


def kept(home: Path) -> int:
    with Ledger.read(home / "out") as ledger:
        return int(ledger.db.execute("SELECT count(*) FROM answers").fetchone()[0])


def at_work(toy: Path) -> list[int]:
    """Processes of the code's environment."""
    found = psutil.process_iter(["pid", "cmdline"])
    return [each.pid for each in found if str(toy) in " ".join(each.info["cmdline"] or [])[: len(str(toy)) + 80]]


def finished(home: Path, command: list[str]) -> None:
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"  {SIZE}  " in done.stdout, done.stderr


@pytest.mark.slow
def test_killed_it_goes_on_and_pays_no_answer_twice(
    home: Path, toy: Path, server: SimulatedTeacher, command: list[str]
) -> None:
    assert stopped(home, signal.SIGKILL, answers(server, 25), command)[0] == -signal.SIGKILL
    time.sleep(1)
    assert not at_work(toy), "the code ends with the command"
    lost = requests(server) - kept(home)
    assert kept(home) >= 25 - AT_ONCE and lost <= AT_ONCE, "at most what was in flight is lost"
    finished(home, command)
    assert requests(server) == SIZE + lost
    finished(home, command)
    assert requests(server) == SIZE + lost, "a second start asks nothing"


@pytest.mark.slow
def test_ctrl_c_ends_it_with_130_and_keeps_what_was_in_flight(
    home: Path, toy: Path, server: SimulatedTeacher, command: list[str]
) -> None:
    code, output = stopped(home, signal.SIGINT, answers(server, 25), command)
    assert code == 130 and "continue with the same command" in output and "Traceback" not in output
    assert not at_work(toy) and kept(home) == requests(server) < SIZE
    finished(home, command)
    assert requests(server) == SIZE and server.stats()["repeated"] == 0
