"""What every command that pays a model promises, whatever it does: one test a promise, each for all doors."""

from __future__ import annotations

import os
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import Result

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from tests.conftest import KEY, KEY_VARIABLE, reset_server
from tests.contracts.doors import DOORS, Door, furnished
from tests.support import toy_alpaca_eval, toy_arena_hard
from tests.support.clocks import until
from tests.support.command_line import refused
from tests.support.compiling import requests
from tests.support.said import Said

IN_FLIGHT = 4
"""Calls on their way at once, by `concurrency` of every model here."""
PATIENCE = 30.0
"""Seconds after which a command is taken to hang."""


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Environments with stand-ins for the official benchmarks' code."""
    folder = tmp_path_factory.mktemp("toys")
    return {
        "alpaca": toy_alpaca_eval.make_environment(folder / "alpaca"),
        "arena": toy_arena_hard.make_environment(folder / "arena"),
    }


@pytest.fixture(scope="session", params=DOORS, ids=lambda door: door.name)
def door(request: pytest.FixtureRequest) -> Door:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def home(
    door: Door, locked: SimulatedTeacher, toys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working folder, with what the door needs; models answer at once, and ask for the key."""
    _ready(tmp_path, door, locked, toys, monkeypatch)
    return tmp_path


def _ready(
    home: Path, door: Door, server: SimulatedTeacher, toys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    for name in [name for name in os.environ if name.startswith("REFED_") and name != "REFED_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REFED_TRACK", "false")
    server.control(verdicts=list(door.verdicts), response_words=4, items=2)
    furnished(home, server, toys)


@dataclass(frozen=True)
class Whole:
    """Work that was done from its start to its end."""

    home: Path
    calls: int
    stdout: str


@pytest.fixture(scope="session")
def whole(
    door: Door, locked_server: SimulatedTeacher, toys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Whole:
    """The door's work, done once a session. Nobody writes into its folder: see `done`."""
    home = tmp_path_factory.mktemp(door.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        reset_server(locked_server)
        _ready(home, door, locked_server, toys, patch)
        made = door.start()
    assert made.exit_code == 0, made.output
    return Whole(home, requests(locked_server), made.stdout)


@pytest.fixture
def done(whole: Whole, home: Path) -> Path:
    """The working folder, with a copy of the work that is done."""
    shutil.copytree(whole.home / "out", home / "out")
    return home


def files(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, by name; what SQLite keeps beside an open ledger is not."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm")))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(found)}


def rows(folder: Path) -> dict[str, bytes]:
    """The rows that the work was done for."""
    return {name: content for name, content in files(folder).items() if name.endswith(".jsonl")}


def one_line(result: Result) -> str:
    """The only line of a refusal: exit code 2, nothing on standard output."""
    refused(result)
    return result.stderr.splitlines()[-1]


def ended(result: Result, code: int) -> str:
    """The last line of work that ended early with this exit code."""
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("refed: ") and "the same call" not in line, "that is how Python's callers are told"
    return line


def test_it_ends_with_0_and_its_ledger_has_every_call(whole: Whole) -> None:
    assert whole.calls > 0
    with Ledger.read(whole.home / "out") as ledger:
        assert spent(ledger).calls == whole.calls


def test_the_same_command_pays_nothing_and_writes_the_same(
    whole: Whole, done: Path, door: Door, locked: SimulatedTeacher
) -> None:
    before = rows(done / "out")
    again = door.start()
    assert again.exit_code == 0, again.output
    assert requests(locked) == 0 and rows(done / "out") == before
    assert again.stdout == whole.stdout


def test_the_key_is_nowhere(whole: Whole) -> None:
    assert KEY not in whole.stdout
    assert not [name for name, content in files(whole.home).items() if KEY.encode() in content]


def test_other_work_is_refused_in_its_folder(said: Said, done: Path, door: Door, locked: SimulatedTeacher) -> None:
    before = rows(done / "out")
    said(one_line(door.otherwise().start()))
    assert requests(locked) == 0 and rows(done / "out") == before


def test_a_folder_in_use_is_refused(done: Path, door: Door, locked: SimulatedTeacher) -> None:
    ledger = Ledger.create(done / "out")
    assert one_line(door.start()).startswith("refed: out: ")
    ledger.close()
    assert requests(locked) == 0
    assert door.start().exit_code == 0, "it is free again"


def test_a_damaged_ledger_is_refused(done: Path, door: Door, locked: SimulatedTeacher) -> None:
    ledger = done / "out" / "ledger.sqlite"
    ledger.write_bytes(ledger.read_bytes()[:5000] + random.Random(0).randbytes(20_000))
    assert str(ledger.relative_to(done)) in one_line(door.start())
    assert requests(locked) == 0


def test_a_cap_in_calls_is_kept_and_a_larger_one_pays_nothing_twice(
    whole: Whole, home: Path, door: Door, locked: SimulatedTeacher
) -> None:
    cap = whole.calls // 2
    assert "max_calls" in ended(door.start_capped("--max-calls", cap), 1)
    assert 0 < requests(locked) <= cap
    ended(door.start(), 1)
    assert requests(locked) <= cap, "a cap stays"
    more = door.start("--max-calls", 10_000)
    assert more.exit_code == 0, more.output
    assert requests(locked) == whole.calls and locked.stats()["repeated"] == 0
    assert rows(home / "out") == rows(whole.home / "out")


def test_a_cap_in_dollars_is_kept(whole: Whole, home: Path, door: Door, locked: SimulatedTeacher) -> None:
    with Ledger.read(whole.home / "out") as ledger:
        cap = 0.85 * float(spent(ledger).cost)
    assert "max_cost" in ended(door.start_capped("--max-cost", cap), 1)
    with Ledger.read(home / "out") as ledger:
        assert spent(ledger).cost <= cap
    assert door.start("--max-cost", "inf").exit_code == 0 and locked.stats()["repeated"] == 0


def test_a_cap_that_allows_no_call_is_refused_before_any(home: Path, door: Door, locked: SimulatedTeacher) -> None:
    assert "max_cost" in one_line(door.start("--max-cost", "0.0000001"))
    assert requests(locked) == 0 and not (home / "out").exists()


def test_a_wrong_key_is_refused_and_told_by_its_variable(
    home: Path, door: Door, locked: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, wrong := "sk-wrong-0123456789abcdef")
    refusal = door.start()
    assert "api_key_env" in one_line(refusal)
    assert wrong not in refusal.output and not [n for n, c in files(home).items() if wrong.encode() in c]


def test_a_server_that_goes_down_ends_it_and_the_next_start_goes_on(
    whole: Whole, home: Path, door: Door, locked: SimulatedTeacher
) -> None:
    locked.control(down_after=whole.calls // 6)
    assert locked.base_url in ended(door.start(), 1)
    locked.control(down_after=None)
    assert door.start().exit_code == 0
    assert rows(home / "out") == rows(whole.home / "out")


def stopped(door: Door, server: SimulatedTeacher, number: int, after: int) -> tuple[int, str]:
    """Start the command in a process, send it the signal once so many calls are answered: exit code and output."""
    server.control(latency=0.03)
    with door.started() as process:
        try:
            until(lambda: server.stats()["answered"] >= after or process.poll() is not None)
            process.send_signal(number)
            _, told = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    until(lambda: server.stats()["in_flight"] == 0)
    server.control(latency=0)
    return process.returncode, told


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_it_goes_on_and_pays_nothing_twice(
    whole: Whole, home: Path, door: Door, locked: SimulatedTeacher, seed: int
) -> None:
    after = random.Random(f"{door.name} {seed}").randint(1, whole.calls - 1)
    code, _ = stopped(door, locked, signal.SIGKILL, after)
    assert code == -signal.SIGKILL
    done = door.start()
    assert done.exit_code == 0, done.output
    assert requests(locked) <= whole.calls + IN_FLIGHT and locked.stats()["repeated"] <= IN_FLIGHT
    assert rows(home / "out") == rows(whole.home / "out")


@pytest.mark.slow
def test_ctrl_c_ends_it_with_130_and_the_next_start_goes_on(
    whole: Whole, home: Path, door: Door, locked: SimulatedTeacher
) -> None:
    code, told = stopped(door, locked, signal.SIGINT, whole.calls // 2)
    assert code == 130 and "Traceback" not in told, told
    assert told.splitlines()[-1].startswith("refed: ")
    done = door.start()
    assert done.exit_code == 0, done.output
    assert locked.stats()["repeated"] == 0 and requests(locked) <= whole.calls + IN_FLIGHT
    assert rows(home / "out") == rows(whole.home / "out")
