"""A compile that was killed or interrupted continues, and pays for nothing twice."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.teachers import open_teacher
from tests.conftest import reset_server
from tests.support import compiling
from tests.support.compiling import SMALL, Answerer, questions, requests
from tests.support.interrupted_compiles import (
    PATIENCE,
    answers,
    child,
    compiled,
    config,
    full_marks,
    killed,
    outcome,
    until,
)
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

server, without_words = compiling.terse_server, compiling.without_words

# --- kills


@pytest.fixture(scope="module")
def uninterrupted(
    shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[dict[str, Any], int]]:
    """What a compile by an optimizer finds out that nothing gets in the way of, and its requests."""
    made: dict[str, tuple[dict[str, Any], int]] = {}

    def once(optimizer: str) -> tuple[dict[str, Any], int]:
        if optimizer not in made:
            reset_server(shared_server)
            shared_server.control(response_words=8, items=1)
            folder = tmp_path_factory.mktemp("whole") / "compile"
            compiled(shared_server, folder, optimizer)
            assert shared_server.stats()["repeated"] == 0
            made[optimizer] = outcome(folder), requests(shared_server)
            shared_server.reset()
        return made[optimizer]

    return once


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "after"),
    [("gepa", 30), ("gepa", 70), ("bootstrap", 40)],
    ids=["in a candidate", "in the proof", "bootstrapping"],
)
def test_a_killed_compile_goes_on_and_pays_for_nothing_again(
    server: SimulatedTeacher, tmp_path: Path, uninterrupted: Any, optimizer: str, after: int
) -> None:
    whole, asked = uninterrupted(optimizer)
    server.control(response_words=8, items=1, latency=0.01, sigma=0.5)
    folder = tmp_path / "compile"
    assert killed(server, folder, after, optimizer=optimizer)
    unseen = server.stats()["answered"] - answers(folder)
    in_flight = requests(server) - answers(folder)
    assert answers(folder) > 0 <= unseen <= in_flight
    made = compiled(server, folder, optimizer)
    assert server.stats()["repeated"] == unseen, "only what was answered to nobody is asked again"
    assert asked <= requests(server) <= asked + in_flight
    assert outcome(folder) == whole
    assert made.stopped == "" and made.manifest["calls"] >= requests(server) - in_flight


@pytest.mark.slow
def test_killed_again_and_again_it_gets_there(server: SimulatedTeacher, tmp_path: Path, uninterrupted: Any) -> None:
    whole, asked = uninterrupted("gepa")
    server.control(response_words=8, items=1, latency=0.005)
    folder, lost = tmp_path / "compile", 0
    for after in range(8, asked, 22):
        if not killed(server, folder, after):
            break
        lost = requests(server) - answers(folder)
    compiled(server, folder)
    assert outcome(folder) == whole
    assert requests(server) - answers(folder) <= lost and server.stats()["repeated"] <= lost


def test_calls_that_were_in_flight_at_a_kill_stay_charged(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.3)
    folder = tmp_path / "compile"
    with child(lambda: compiled(server, folder), folder) as process:
        until(lambda: requests(server) >= 4)
        process.kill()
        process.join()
    server.control(latency=0)
    compiled(server, folder, max_calls=20)
    with Ledger.read(folder) as ledger:
        rows = dict(ledger.db.execute("SELECT outcome, count(*) FROM calls GROUP BY outcome"))
        lost = ledger.db.execute("SELECT min(cost = reserved) FROM calls WHERE outcome='lost'").fetchone()[0]
    assert rows["lost"] >= 4 and "sent" not in rows and lost == 1
    assert sum(rows.values()) <= 20


@pytest.mark.slow
@pytest.mark.parametrize("after", [60, 150], ids=["bootstrapping", "in the proof"])
def test_a_killed_bootstrap_comes_to_the_same_candidates_in_another_process(
    server: SimulatedTeacher, tmp_path: Path, after: int
) -> None:
    """Each predictor is asked several times a reference, and DSPy draws one of them by their pickle's bytes."""
    server.control(response_words=8, items=2)
    two = {"features": {"topic": "What it is about.", "tone": "How it sounds."}, "instructions_per_feature": 2}
    found: list[dict[str, Any]] = []
    for home in (tmp_path / "whole", tmp_path / "stopped"):
        home.mkdir()
        line = command(server, home, "bootstrap", **two)
        if home.name == "stopped":
            server.reset()
            with subprocess.Popen(line, cwd=home, env=hash_seed(1), stderr=subprocess.DEVNULL) as process:
                until(lambda: server.stats()["answered"] >= after or process.poll() is not None, 40)
                process.kill()
            assert answers(home / "compile") > 0
        subprocess.run(line, cwd=home, env=hash_seed(2 + 4 * len(found)), check=True, capture_output=True)
        found.append(outcome(home / "compile"))
    assert any(candidate[2]["response_improvement"]["demos"] for candidate in found[0]["candidates"].values())
    assert found[0]["candidates"].keys() == found[1]["candidates"].keys()
    assert found[0] == found[1]


def hash_seed(seed: int) -> dict[str, str]:
    """The environment, with an order of sets that is as good as any other process's."""
    return {**os.environ, "PYTHONHASHSEED": str(seed)}


# --- the same call again


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gepa", "bootstrap", "mipro", "simba"])
def test_the_same_compile_again_asks_nothing_and_finds_the_same(
    server: SimulatedTeacher, tmp_path: Path, optimizer: str
) -> None:
    teacher = config(server, temperature=1.0)
    folder = tmp_path / "compile"
    first = compiled(server, folder, optimizer, teacher=teacher, reflection=teacher)
    asked, first_outcome = requests(server), outcome(folder)
    second = compiled(server, folder, optimizer, teacher=teacher, reflection=teacher)
    assert requests(server) == asked == first.manifest["calls"] == second.manifest["calls"]
    assert outcome(folder) == first_outcome
    assert second.proof is not None and first.proof is not None and second.proof.gain == first.proof.gain


@pytest.mark.slow
def test_other_caps_threads_and_prices_are_still_the_same_compile(server: SimulatedTeacher, tmp_path: Path) -> None:
    folder = tmp_path / "compile"
    compiled(server, folder, "bootstrap")
    asked, first_outcome = requests(server), outcome(folder)
    slow = config(server, concurrency=2, timeout=9, price={"prompt": 2.0, "completion": 3.0})
    compiled(server, folder, "bootstrap", teacher=slow, threads=1, max_calls=9_000, name="other")
    again = outcome(folder)
    assert again["manifest"].pop("name") == "other" and first_outcome["manifest"].pop("name") == "refed"
    assert again == first_outcome and requests(server) == asked


# --- Ctrl-C


def command(server: SimulatedTeacher, home: Path, optimizer: str, **settings: Any) -> list[str]:
    """A compile by command line."""
    (home / "references.jsonl").write_text("".join(json.dumps(each) + "\n" for each in references(10)))
    for role in ("teacher", "judge"):
        model = {"model": f"openai/{role}", "api_base": server.base_url, "max_tokens": 512, "temperature": 0}
        (home / f"{role}.yaml").write_text(json.dumps(model))
    (home / "compile.yaml").write_text(json.dumps({**SMALL, **settings}))
    words = "compile --references references.jsonl --teacher teacher.yaml --judge judge.yaml --config compile.yaml"
    words += f" --optimizer {optimizer} --evaluations 10 --out compile"
    return [sys.executable, "-m", "refed_dspy.cli", *words.split()]


@pytest.mark.slow
def test_ctrl_c_ends_the_command_within_seconds(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.05)
    command_line = command(server, tmp_path, "gepa")
    with subprocess.Popen(
        command_line, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: server.stats()["answered"] >= 40 or process.poll() is not None, 40)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert time.monotonic() - begun < 5
    assert process.returncode not in (0, 1) and "Traceback" not in errors
    with sqlite3.connect(tmp_path / "compile" / "ledger.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        outcomes = dict(db.execute("SELECT outcome, count(*) FROM calls GROUP BY outcome"))
    assert "sent" not in outcomes, "what was cancelled is recorded"
    assert answers(tmp_path / "compile") == outcomes["ok"]
    assert outcomes["ok"] <= server.stats()["answered"] <= outcomes["ok"] + outcomes.get("cancelled", 0)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["mipro", "simba", "bootstrap"])
def test_ctrl_c_ends_any_optimizer_and_leaves_the_ledger_whole(
    server: SimulatedTeacher, tmp_path: Path, optimizer: str
) -> None:
    server.control(latency=0.03)
    folder = tmp_path / "compile"
    with child(lambda: compiled(server, folder, optimizer), folder) as process:
        until(lambda: server.stats()["answered"] >= 25)
        begun = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        until(lambda: (tmp_path / "ended").exists(), 5)
        assert (tmp_path / "ended").read_text().startswith("KeyboardInterrupt")
        process.join(5)
        assert not process.is_alive() and time.monotonic() - begun < 5
    with Ledger.read(folder) as ledger:
        outcomes = dict(ledger.db.execute("SELECT outcome, count(*) FROM calls GROUP BY outcome"))
    stored_answers, recorded = answers(folder), sum(outcomes.values())
    assert set(outcomes) <= {"ok", "cancelled"} and stored_answers == outcomes["ok"] > 0
    assert outcomes["ok"] <= requests(server) <= recorded, "a cancelled call may not have got as far as the server"
    server.control(latency=0)
    made = compiled(server, folder, optimizer, max_calls=recorded + 5)
    assert made.stopped == "max_calls" and requests(server) <= recorded + 5


def test_ctrl_c_while_a_model_starts_ends_its_thread(server: SimulatedTeacher, tmp_path: Path) -> None:
    """An embedded model takes seconds to start, and it has to be ended when it has."""
    teacher = open_teacher(config(server))
    start, stop = teacher.start, teacher.stop
    folder = tmp_path / "compile"

    def slowly() -> Any:
        (tmp_path / "starting").touch()
        time.sleep(0.5)
        return start()

    def stopped() -> None:
        (tmp_path / "stopped").touch()
        stop()

    def work() -> None:
        try:
            compiled(server, folder, teacher=teacher, judge=teacher)
        finally:
            until(lambda: all(thread.name != "refed-gateway" for thread in threading.enumerate()), 2)
            (tmp_path / "clean").touch()

    teacher.start, teacher.stop = slowly, stopped
    with child(work, folder) as process:
        until((tmp_path / "starting").exists)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGINT)
        process.join(4)
        assert (tmp_path / "clean").exists() and (tmp_path / "stopped").exists()
        assert not process.is_alive()


def test_a_metric_of_ones_own_that_breaks_ends_it_and_is_named_with_its_item(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    def broken(example: Any, prediction: Any, trace: Any = None) -> float:
        raise ZeroDivisionError("my metric")

    with said.by(RunStopped):
        compiled(server, tmp_path / "compile", "gepa", program=Answerer(), examples=questions(10), metric=broken)
    with suppress(RunDirError), Ledger.read(tmp_path / "compile") as ledger:
        assert ledger.db.execute("SELECT count(*) FROM evaluations").fetchone() == (0,)


def test_half_a_character_in_answers_does_not_end_a_compile(tmp_path: Path) -> None:
    """Models write them, now and then, as "\\ud83d" in their JSON: here they could become demonstrations."""
    writer = Writer()
    writer.on_request = lambda _: json.dumps({"answer": "whole" if len(writer.requests) % 3 else "half \ud83d"})
    settings: dict[str, Any] = {"train": 3, "validation": 2, "test": 5, "track": False, "optimizer": "bootstrap"}
    made = refed_dspy.compile(
        Answerer(), questions(10), metric=full_marks, teacher=fake_lm(writer), out=tmp_path / "compile", **settings
    )
    assert made.proof is not None
