"""The command killed or stopped with Ctrl-C: nothing is paid for twice, and the next start writes the whole file."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from tests.runs.answers.helpers import prompts, read
from tests.runs.recycle.helpers import REFED, answers, requests, stopped
from tests.support.said import Said

COMMAND = [*REFED, "evaluate", "answers", "--prompts", "q.jsonl", "--model", "teacher.yaml", "--out", "out"]
COMMAND += ["--format", "arena_hard"]


@pytest.fixture
def home(server: SimulatedTeacher, tmp_path: Path) -> Path:
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts(60)))
    (tmp_path / "teacher.yaml").write_text(f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: 8\n")
    return tmp_path


@pytest.mark.slow
def test_killed_it_goes_on_and_pays_no_answer_twice(said: Said, home: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.05)
    assert stopped(home, signal.SIGKILL, answers(server, 25), COMMAND)[0] == -signal.SIGKILL
    time.sleep(0.3)
    with Ledger.read(home / "out") as ledger:
        (kept,) = ledger.db.execute("SELECT count(*) FROM answers").fetchone()
    lost = requests(server) - kept
    assert kept >= 17 and lost <= 8, "at most what was in flight is lost"
    assert not (home / "out" / "sim-model.jsonl").exists()
    done = subprocess.run(COMMAND, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    said(done.stdout)
    assert requests(server) == 60 + lost
    written = (home / "out" / "sim-model.jsonl").read_bytes()
    assert len(read(home / "out" / "sim-model.jsonl")) == 60
    again = subprocess.run(COMMAND, cwd=home, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and requests(server) == 60 + lost, "a second start asks nothing"
    assert (home / "out" / "sim-model.jsonl").read_bytes() == written


@pytest.mark.slow
def test_ctrl_c_ends_it_with_130_and_writes_the_answers_so_far(
    said: Said, home: Path, server: SimulatedTeacher
) -> None:
    server.control(latency=0.05)
    code, output = stopped(home, signal.SIGINT, answers(server, 25), COMMAND)
    assert code == 130 and "Traceback" not in output
    said(output)
    rows = read(home / "out" / "sim-model.jsonl")
    assert 17 <= len(rows) < 60 and len(rows) + len(read(home / "out" / "unanswered.jsonl")) == 60
    done = subprocess.run(COMMAND, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and server.stats()["repeated"] == 0 and requests(server) <= 60 + 8
    assert not (home / "out" / "unanswered.jsonl").exists()
    by_uid = {row["uid"]: row for row in read(home / "out" / "sim-model.jsonl")}
    assert len(by_uid) == 60 and all(by_uid[row["uid"]] == row for row in rows)
