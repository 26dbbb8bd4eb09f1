"""The command killed or stopped with Ctrl-C, and its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from tests.runs.recycle.helpers import (
    COMMAND,
    REFED,
    answers,
    read,
    requests,
    stopped,
)
from tests.support.said import Said
from tests.support.scripted_engine import references
from tests.support.toy_server import ToyServer


@pytest.fixture
def home(server: SimulatedTeacher, tmp_path: Path) -> Path:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in references(80)))
    (tmp_path / "teacher.yaml").write_text(f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: 8\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_stopped_between_the_passes_it_goes_on_with_the_second(
    said: Said, home: Path, server: SimulatedTeacher, scoring: ToyServer, number: signal.Signals, code: int
) -> None:
    (home / "job.yaml").write_text(f"scorer: {{model: toy, api_base: {scoring.url}}}\n")
    command = [*COMMAND, "--selective", "--config", "job.yaml", "--size", "24"]
    assert stopped(home, number, lambda: len(scoring.prompts) > 20, command)[0] == code
    assert requests(server) == 24 and not (home / "out" / "recycled.jsonl").exists()
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    said(done.stdout)
    assert requests(server) == 48 and server.stats()["repeated"] == 0


@pytest.mark.slow
def test_killed_in_the_second_pass_it_pays_no_answer_twice(
    home: Path, server: SimulatedTeacher, scoring: ToyServer
) -> None:
    (home / "job.yaml").write_text(f"scorer: {{model: toy, api_base: {scoring.url}}}\n")
    command = [*COMMAND, "--selective", "--config", "job.yaml", "--size", "24"]
    server.control(latency=0.05)
    assert stopped(home, signal.SIGKILL, answers(server, 33), command)[0] == -signal.SIGKILL
    time.sleep(0.3)
    with Ledger.read(home / "out") as ledger:
        (kept,) = ledger.db.execute("SELECT count(*) FROM answers").fetchone()
    lost = requests(server) - kept
    assert kept >= 24 and lost <= 16, "at most what was in flight is lost"
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and requests(server) == 48 + lost


@pytest.mark.slow
def test_killed_it_goes_on_and_pays_no_answer_twice(home: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.05)
    lost = 0
    for after in (20, 70):
        assert stopped(home, signal.SIGKILL, answers(server, after))[0] == -signal.SIGKILL
        time.sleep(0.3)
        with Ledger.read(home / "out") as ledger:
            (kept,) = ledger.db.execute("SELECT count(*) FROM answers").fetchone()
        lost = requests(server) - kept
        assert kept >= after - 16 and lost <= 16, "at most what was in flight is lost"
    server.control(latency=0)
    done = subprocess.run(COMMAND, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "80 of 80 rows recycled" in done.stdout
    assert requests(server) == 160 + lost and len(read(home / "out" / "recycled.jsonl")) == 80


@pytest.mark.slow
def test_ctrl_c_ends_it_with_130_and_leaves_the_rows_so_far(home: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.05)
    before = (home / "data.jsonl").read_bytes()
    code, output = stopped(home, signal.SIGINT, answers(server, 60))
    assert code == 130 and "continue with the same command" in output and "Traceback" not in output
    rows = read(home / "out" / "recycled.jsonl")
    assert 20 <= len(rows) < 80
    answered = requests(server)
    server.control(latency=0)
    done = subprocess.run(COMMAND, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert requests(server) <= 160 + 8 and server.stats()["repeated"] == 0 and answered < 160
    by_row = {row["row"]: row for row in read(home / "out" / "recycled.jsonl")}
    assert len(by_row) == 80 and all(by_row[row["row"]] == row for row in rows)
    assert (home / "data.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_cap_ends_the_command_with_1_and_bad_input_with_2(said: Said, home: Path, server: SimulatedTeacher) -> None:
    capped = subprocess.run([*COMMAND, "--max-calls", "20"], cwd=home, capture_output=True, text=True, check=False)
    assert capped.returncode == 1 and "Traceback" not in capped.stderr
    said(capped.stderr)
    missing = [*REFED, "recycle", "no.jsonl", "--teacher", "teacher.yaml", "--out", "new"]
    refused = subprocess.run(missing, cwd=home, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    said(refused.stderr)
    assert not (home / "new").exists() and len(refused.stderr.splitlines()) == 1
