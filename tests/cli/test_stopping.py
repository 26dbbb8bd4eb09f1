"""Ctrl-C, SIGTERM and a terminal that goes away: at any time a clean end, and paid answers are kept."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import INTERRUPTED, state_of
from tests.support import mlflow_stores
from tests.support.command_line import REFED
from tests.support.said import Said
from tests.support.scripted_engine import references

mlflow_template = mlflow_stores.mlflow_template
DURING_IMPORT = """
import os, signal, sys
number, module, *words = sys.argv[1:]
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Interrupting())
sys.argv = ["refed", *words]
from refed_dspy.cli import main
main()
"""
SAYS_HOW_TO_GO_ON = re.compile(r"^refed: stopped; .* kept in out; continue with the same command.*\n\Z", re.MULTILINE)
INTERRUPTING = """
import os, signal
from refed_dspy.filters.base import Decision
class Interrupting:
    name, of_instruction, seen = "interrupting", False, 0
    def check(self, row):
        self.seen += 1
        if self.seen == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return Decision(True)
    def remember(self, row):
        pass
"""
WHEN_OVER = """
import os, sys, threading, time
number, *words = sys.argv[1:]
def interrupting():
    threading.main_thread().join()
    os.kill(os.getpid(), int(number))
    time.sleep(0.2)
threading.Thread(target=interrupting).start()
sys.argv = ["refed", *words]
from refed_dspy.cli import main
main()
"""
COMMANDS = {
    "synth": "synth --references references.jsonl --teacher teacher.yaml --size 60 --run-dir out",
    "filter": "filter pairs.jsonl --filter judge --judge teacher.yaml --config plain.yaml --out out",
    "compare": "compare --references references.jsonl --teacher teacher.yaml --judge teacher.yaml --size 30"
    " --config compare.yaml --out out",
    "recycle": "recycle references.jsonl --teacher teacher.yaml --out out",
    "compile": "compile --references references.jsonl --teacher teacher.yaml --judge teacher.yaml"
    " --config compile.yaml --out out",
}


def ignoring_ctrl_c() -> None:
    """As a shell starts its background jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def furnished(home: Path, server: SimulatedTeacher) -> Path:
    """What COMMANDS need, of a server."""
    rows = references(40)
    (home / "references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = {"model": "sim/sim-model", "api_base": server.base_url, "concurrency": 2}
    (home / "teacher.yaml").write_text(json.dumps(teacher))
    pairs = [{**row, "before": f"a first draft of {number}"} for number, row in enumerate(rows)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (home / "plain.yaml").write_text("columns: {plain: before}\n")
    (home / "compare.yaml").write_text("programs: {a: seed-only, b: instruction-only}\nagainst: b\n")
    sizes = {"optimizer": "gepa", "train": 6, "validation": 6, "test": 6, "evaluations": 30}
    (home / "compile.yaml").write_text(json.dumps({**sizes, "instructions_per_feature": 1}))
    return home


def until(happened: Callable[[], bool], process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Wait, for as long as the process runs."""
    while process.poll() is None and not happened():
        time.sleep(0.02)


def started(script: str, number: int, *words: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that `script` sends the signal to."""
    return subprocess.run(
        [sys.executable, "-c", script, str(int(number)), *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("number", "module"), [(signal.SIGINT, "typer"), (signal.SIGTERM, "pydantic")])
def test_during_the_imports_the_command_ends(home: Path, number: int, module: str) -> None:
    done = started(DURING_IMPORT, number, module, *COMMANDS["synth"].split())
    assert done.returncode == 128 + number and "Traceback" not in done.stderr, done.stderr
    assert not (home / "out").exists()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("pyarrow.parquet", "export run --format parquet --out made"),
        pytest.param("pyarrow.parquet", "share run --out made --license cc-by-4.0", marks=pytest.mark.slow),
        pytest.param("jinja2", "report run --out made.html", marks=pytest.mark.slow),
    ],
)
def test_inside_an_import_at_work_what_was_begun_is_cleaned_up(said: Said, run: Path, module: str, words: str) -> None:
    """Nothing but the run is left: no half file, no temporary folder, no lock that is held."""
    before = {path.name for path in run.parent.iterdir()}
    done = started(DURING_IMPORT, signal.SIGTERM, module, *words.split())
    assert done.returncode == 128 + signal.SIGTERM
    said(done.stderr.splitlines()[-1])  # before it, if it took a moment, that it is stopping
    assert {path.name for path in run.parent.iterdir()} == before


def test_ctrl_c_says_what_is_kept_and_how_to_go_on(said: Said, home: Path) -> None:
    """Also where the settings, the folder among them, are all in a file."""
    (home / "own.py").write_text(INTERRUPTING)
    settings = {"references": "references.jsonl", "size": 400, "teacher": "simulated", "run_dir": "out"}
    (home / "run.yaml").write_text(json.dumps({**settings, "filters": ["own:Interrupting"]}))
    done = subprocess.run([*REFED, "synth", "--config", "run.yaml"], capture_output=True, text=True, check=False)
    with Ledger.read(home / "out") as ledger:
        kept = ledger.kept()
    assert done.returncode == 130, done.stderr
    said(done.stderr.splitlines()[-1].replace(f" {kept} of", " KEPT of"))


EXPORT = ("export", "run", "--out", "made.jsonl")
SIGNALS = [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_command_has_ended_changes_nothing(said: Said, run: Path, number: int) -> None:
    """It comes while Python waits for threads of libraries: the exit code is settled, and nothing is left to stop."""
    done = started(WHEN_OVER, number, *EXPORT)
    said((done.returncode, done.stdout, done.stderr))


AS_IT_ENDS = """
import signal, sys
import refed_dspy.cli as cli
number, function, *words = sys.argv[1:]
returned = []
def interrupting(frame, event, _):
    if event == "return" and (returned or frame.f_code.co_name == "wrapped"):
        returned.append(frame.f_code.co_name)
        if returned[-1] == function:
            sys.setprofile(None)
            signal.raise_signal(int(number))
sys.setprofile(interrupting)
sys.argv = ["refed", *words]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("function", ["wrapped", "invoke", "run"])
def test_a_signal_as_the_command_ends_changes_nothing(said: Said, run: Path, number: int, function: str) -> None:
    """It comes as the command's function, Click's, or all of it returns."""
    done = started(AS_IT_ENDS, number, function, *EXPORT)
    said((done.returncode, done.stdout, done.stderr))


def outcomes(folder: Path) -> dict[str, int]:
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        return dict(db.execute("SELECT outcome, count(*) FROM calls GROUP BY outcome"))


def state(folder: Path) -> dict[str, str]:
    with Ledger.read(folder) as ledger:
        facts = state_of(ledger)
    return {name: facts[name] for name in ("state", "reason")}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_is_in_flight_may_land(
    furnished: Path, server: SimulatedTeacher, name: str, number: signal.Signals
) -> None:
    server.control(latency=0.3)
    command = [*REFED, *COMMANDS[name].split()]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=ignoring_ctrl_c
    ) as process:
        try:
            until(lambda: server.stats()["answered"] >= 6, process)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 128 + number, stderr
    assert SAYS_HOW_TO_GO_ON.search(stderr) and "Traceback" not in stderr, stderr
    ended = outcomes(furnished / "out")
    if name != "compile":  # DSPy's optimizers are ended where they stand
        assert ended == {"ok": server.stats()["requests"]}, "every call landed"
    assert "sent" not in ended
    assert state(furnished / "out") == {"state": "stopped", "reason": INTERRUPTED}
    server.control(latency=0)
    if name != "compile":
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in {0, 1} and "Traceback" not in done.stderr
        assert server.stats()["repeated"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_status_tells_running_from_killed(said: Said, furnished: Path, server: SimulatedTeacher, name: str) -> None:
    server.control(latency=0.3)
    status = [*REFED, "status", "out"]
    with subprocess.Popen([*REFED, *COMMANDS[name].split()], stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: server.stats()["answered"] >= 6, process)
            server.control(latency=60)  # the next calls are in flight for as long as anyone looks
            running = subprocess.run(status, capture_output=True, text=True, check=True).stdout
            assert process.poll() is None, "it was at work all the while"
        finally:
            process.kill()
    killed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    names = [[line.partition(": ")[0] for line in told.splitlines()] for told in (running, killed)]
    said(names)
    assert max(map(len, names)) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synth", "compare", "compile"])
def test_ctrl_c_of_tracked_work(
    said: Said,
    furnished: Path,
    server: SimulatedTeacher,
    name: str,
    mlflow_template: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its run is not under way at MLflow any more, or not there yet; `refed track` tells the rest."""
    store = furnished / "mlflow.db"
    shutil.copy(mlflow_template, store)
    monkeypatch.setenv("REFED_TRACK", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    command = [*REFED, *COMMANDS[name].split()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            until(lambda: server.stats()["answered"] >= 6, process)
            server.control(latency=60)
            until(lambda: server.stats()["in_flight"] > 0, process)
            process.send_signal(signal.SIGINT)
            stderr = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert process.returncode == 130, stderr
    said([line for line in stderr.splitlines() if line.startswith("refed: stopping")])
    assert SAYS_HOW_TO_GO_ON.search(stderr) and "Traceback" not in stderr, stderr
    ended = outcomes(furnished / "out")
    assert ended["ok"] == server.stats()["answered"] and "sent" not in ended
    told = subprocess.run([*REFED, "track", "out"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    with sqlite3.connect(store) as db:
        states = [state for (state,) in db.execute("SELECT status FROM runs")]
    assert {*states} <= {"KILLED", "FINISHED"} and states.count("KILLED") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["synth", "compare", "compile"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(
    furnished: Path, server: SimulatedTeacher, name: str, number: signal.Signals
) -> None:
    """Also one that comes while what the first began is under way, and while Python itself ends."""
    server.control(latency=60)
    with subprocess.Popen(
        [*REFED, *COMMANDS[name].split()], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            until(lambda: server.stats()["requests"] > 0, process)
            while process.poll() is None:
                process.send_signal(number)
                time.sleep(0.02)
            stderr = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr and "Exception" not in stderr
    assert stderr.splitlines()[-1].startswith("refed: stopped")


@pytest.mark.slow
def test_a_terminal_that_goes_away(furnished: Path, server: SimulatedTeacher) -> None:
    """A real one: the command leads its session, and its terminal is closed."""
    server.control(latency=0.2)
    child, terminal = pty.fork()
    if child == 0:
        os.execv(REFED[0], [*REFED, *COMMANDS["synth"].split()])
    while server.stats()["answered"] < 6:
        time.sleep(0.02)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert outcomes(furnished / "out") == {"ok": server.stats()["requests"]}
