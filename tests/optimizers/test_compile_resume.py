"""A compile that was killed or interrupted continues, and pays for nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.teachers import open_teacher
from tests.support import compiling
from tests.support.clocks import until
from tests.support.command_line import REFED
from tests.support.compiling import SMALL, Answerer, questions, requests
from tests.support.interrupted_compiles import (
    answers,
    child,
    compiled,
    config,
    full_marks,
    killed,
    outcome,
)
from tests.support.scripted_engine import Writer, fake_lm, references

server, without_words = compiling.terse_server, compiling.without_words

# --- kills


@pytest.mark.slow
def test_killed_again_and_again_it_gets_there(server: SimulatedTeacher, tmp_path: Path) -> None:
    at_once = compiled(server, tmp_path / "whole").manifest["race"][0]["calls"]
    whole, asked = outcome(tmp_path / "whole"), requests(server)
    server.reset()
    server.control(response_words=8, items=1, latency=0.005)
    folder, lost = tmp_path / "compile", 0
    for after in range(8, asked, 22):
        if not killed(server, folder, after):
            break
        lost = requests(server) - answers(folder)
    made = compiled(server, folder)
    assert made.manifest["race"][0]["calls"] >= at_once > 0, "what earlier starts paid in its turn counts, too"
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
def test_a_killed_bootstrap_comes_to_the_same_candidates_in_another_process(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    """Each predictor is asked several times a reference, and DSPy draws one of them by their pickle's bytes."""
    server.control(response_words=8, items=2)
    found: list[dict[str, Any]] = []
    for home in (tmp_path / "whole", tmp_path / "stopped"):
        home.mkdir()
        line = command(server, home)
        if home.name == "stopped":
            server.reset()
            with subprocess.Popen(line, cwd=home, env=hash_seed(1), stderr=subprocess.DEVNULL) as process:
                until(lambda: server.stats()["answered"] >= 60 or process.poll() is not None, 40)
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


def command(server: SimulatedTeacher, home: Path) -> list[str]:
    """A compile by command line."""
    (home / "references.jsonl").write_text("".join(json.dumps(each) + "\n" for each in references(10)))
    for role in ("teacher", "judge"):
        model = {"model": f"openai/{role}", "api_base": server.base_url, "max_tokens": 512, "temperature": 0}
        (home / f"{role}.yaml").write_text(json.dumps(model))
    two = {"features": {"topic": "What it is about.", "tone": "How it sounds."}, "instructions_per_feature": 2}
    (home / "compile.yaml").write_text(json.dumps({**SMALL, **two}))
    words = "compile --references references.jsonl --teacher teacher.yaml --judge judge.yaml --config compile.yaml"
    words += " --optimizer bootstrap --evaluations 10 --out compile"
    return [*REFED, *words.split()]


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


def test_half_a_character_in_answers_does_not_end_a_compile(tmp_path: Path) -> None:
    """Models write them, now and then, as "\\ud83d" in their JSON: here they could become demonstrations."""
    writer = Writer()
    writer.on_request = lambda _: json.dumps({"answer": "whole" if len(writer.requests) % 3 else "half \ud83d"})
    settings: dict[str, Any] = {"train": 3, "validation": 2, "test": 5, "track": False, "optimizer": "bootstrap"}
    made = refed_dspy.compile(
        Answerer(), questions(10), metric=full_marks, teacher=fake_lm(writer), out=tmp_path / "compile", **settings
    )
    assert made.proof is not None
