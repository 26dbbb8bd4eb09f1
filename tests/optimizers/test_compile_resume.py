"""A compile that is killed, interrupted, called again or otherwise: nothing is paid for twice, nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dspy
import pytest
import tqdm  # type: ignore[import-untyped]

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import Compiled, TeacherConfig, open_teacher
from refed_dspy.errors import RunDirError
from refed_dspy.ledger.candidates import trials
from refed_dspy.ledger.ledger import Ledger
from tests.conftest import at_rest
from tests.support import compiling
from tests.support.compiling import SMALL, Answerer, questions, requests
from tests.support.scripted_engine import Writer, fake_lm, references

server, without_words = compiling.terse_server, compiling.without_words
PATIENCE = 20.0
"""Seconds after which whatever still works is taken to hang."""
FORK = multiprocessing.get_context("fork")


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    """At temperature 0 the server says the same to the same messages, in any order."""
    return compiling.config(server, **{"temperature": 0.0, **settings})


def compiled(server: SimulatedTeacher, folder: Path, optimizer: str = "gepa", **settings: Any) -> Compiled:
    models = {"teacher": config(server), "judge": config(server, model="openai/judge")}
    program, examples = settings.pop("program", None), settings.pop("examples", None)
    return compiling.compiled(program, examples, folder, optimizer, **{**models, "evaluations": 10, **settings})


def outcome(folder: Path) -> dict[str, Any]:
    """All that a compile found out, but for times and what it cost."""
    with Ledger.read(folder) as ledger:
        manifest = dict(ledger.meta("outcome"))
        found = {t.digest: (t.scores, t.parts, t.state) for t in trials(ledger)}
    for word in ("made", "cost", "calls", "usage", "run_id"):
        del manifest[word]
    if manifest["proof"]:
        manifest["proof"] = {k: v for k, v in manifest["proof"].items() if k in ("gain", "proved")}
    program = json.loads((folder / "program.json").read_text())
    return {"manifest": manifest, "candidates": found, "program": {k: v for k, v in program.items() if k != "refed"}}


def answers(folder: Path) -> int:
    if not (folder / "ledger.sqlite").exists():
        return 0
    with Ledger.read(folder) as ledger:
        return int(ledger.db.execute("SELECT count(*) FROM answers").fetchone()[0])


def until(happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.005)


def _in_child(work: Callable[[], Any], folder: Path) -> None:
    tqdm.tqdm.set_lock(threading.RLock())  # its own is shared with the parent, and a kill would leave it taken
    with (folder.parent / f"{folder.name}.out").open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        begun = time.monotonic()
        try:
            work()
        except BaseException as error:
            written = folder.parent / "ended.new"
            written.write_text(f"{type(error).__name__} {time.monotonic() - begun:.1f}")
            written.rename(folder.parent / "ended")
            raise


@contextmanager
def child(work: Callable[[], Any], folder: Path) -> Iterator[Any]:
    """`work` in a process of its own, which is not left behind."""
    process = FORK.Process(target=_in_child, args=(work, folder))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def killed(server: SimulatedTeacher, folder: Path, after: int, **settings: Any) -> bool:
    """A start that is killed (SIGKILL) once the server has answered so often. False where it had ended by then."""
    with child(lambda: compiled(server, folder, **settings), folder) as process:
        until(lambda: server.stats()["answered"] >= after or not process.is_alive())
        alive = bool(process.is_alive())
        process.kill()
        process.join()
    until(lambda: server.stats()["in_flight"] == 0)
    return alive


# --- kills


@pytest.fixture(scope="module")
def uninterrupted(
    shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[dict[str, Any], int]]:
    """What a compile by an optimizer finds out that nothing gets in the way of, and its requests."""
    made: dict[str, tuple[dict[str, Any], int]] = {}

    def once(optimizer: str) -> tuple[dict[str, Any], int]:
        if optimizer not in made:
            at_rest(shared_server)
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


# --- the same call again


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gepa", "bootstrap", "mipro", "simba"])
def test_the_same_compile_again_asks_nothing_and_finds_the_same(
    server: SimulatedTeacher, tmp_path: Path, optimizer: str
) -> None:
    teacher = config(server, temperature=1.0)
    folder = tmp_path / "compile"
    first = compiled(server, folder, optimizer, teacher=teacher, reflection=teacher)
    asked, found = requests(server), outcome(folder)
    second = compiled(server, folder, optimizer, teacher=teacher, reflection=teacher)
    assert requests(server) == asked == first.manifest["calls"] == second.manifest["calls"]
    assert outcome(folder) == found
    assert second.proof is not None and first.proof is not None and second.proof.gain == first.proof.gain


@pytest.mark.slow
def test_other_caps_threads_and_prices_are_still_the_same_compile(server: SimulatedTeacher, tmp_path: Path) -> None:
    folder = tmp_path / "compile"
    compiled(server, folder, "bootstrap")
    asked, found = requests(server), outcome(folder)
    slow = config(server, concurrency=2, timeout=9, price={"prompt": 2.0, "completion": 3.0})
    compiled(server, folder, "bootstrap", teacher=slow, threads=1, max_calls=9_000, name="other")
    again = outcome(folder)
    assert again["manifest"].pop("name") == "other" and found["manifest"].pop("name") == "refed"
    assert again == found and requests(server) == asked


# --- another call


@pytest.fixture(scope="module")
def finished(shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    at_rest(shared_server)
    shared_server.control(response_words=8, items=1)
    folder = tmp_path_factory.mktemp("finished") / "compile"
    compiled(shared_server, folder, "bootstrap")
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optimizer": "gepa"}, "optimizer was bootstrap, is gepa"),
        ({"seed": 5}, "seed was 0, is 5"),
        ({"evaluations": 11}, "evaluations was 10, is 11"),
        ({"options": {"max_rounds": 2}}, "options was"),
        ({"instructions_per_feature": 2}, "instructions_per_feature was 1, is 2"),
        ({"features": {"form": "Its form."}}, "program"),
        ({"guidance": {"response_generation": "Be brief."}}, "program.response_generation was"),
        ({"train": 2}, "examples.train was"),
        ({"test": 3}, "examples.test was"),
        ({"examples": references(12)}, "examples"),
        ({"teacher": {"model": "openai/other"}}, "teacher.model was openai/sim, is openai/other"),
        ({"teacher": {"temperature": 0.4}}, "teacher.temperature was 0.0, is 0.4"),
        ({"teacher": {"max_tokens": 600}}, "teacher.max_tokens was 512, is 600"),
        ({"judge": {"params": {"top_p": 0.5}}}, "judge"),
        ({"reflection": {"model": "openai/big"}}, "reflection.model was openai/judge, is openai/big"),
    ],
    ids=str,
)
def test_another_compile_in_the_same_folder_is_refused_with_the_difference(
    server: SimulatedTeacher, finished: Path, change: dict[str, Any], named: str
) -> None:
    before = outcome(finished)
    models = ("teacher", "judge", "reflection")
    given: dict[str, Any] = {
        "optimizer": "bootstrap",
        **{k: config(server, **v) if k in models else v for k, v in change.items()},
    }
    with pytest.raises(RunDirError) as refused:
        compiled(server, finished, given.pop("optimizer"), **given)
    assert named in str(refused.value) and "--out" in str(refused.value) and "\n" not in str(refused.value)
    assert requests(server) == 0 and outcome(finished) == before


def full_marks(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
    return 1.0


def test_another_kind_of_program_is_refused(server: SimulatedTeacher, finished: Path) -> None:
    with pytest.raises(RunDirError, match="kind was ReferenceLevelFeedback, is Answerer"):
        compiled(server, finished, "bootstrap", program=Answerer(), examples=questions(10), metric=full_marks)
    assert requests(server) == 0


def test_a_runs_folder_is_refused_for_a_compile(server: SimulatedTeacher, tmp_path: Path) -> None:
    refed_dspy.synthesize(None, references(3), size=1, teacher=config(server), run_dir=tmp_path / "run", track=False)
    asked = requests(server)
    with pytest.raises(RunDirError, match="holds a run, not a compile"):
        compiled(server, tmp_path / "run")
    assert requests(server) == asked
    assert refed_dspy.read_run(tmp_path / "run").complete


def test_a_compiles_folder_is_refused_for_a_resume(server: SimulatedTeacher, finished: Path) -> None:
    with pytest.raises(RunDirError, match="holds a compile, not a run"):
        refed_dspy.resume(finished)
    assert requests(server) == 0


def test_a_compiles_folder_is_refused_for_a_run(server: SimulatedTeacher, finished: Path) -> None:
    before = outcome(finished)
    with pytest.raises(RunDirError, match="compile") as refused:
        refed_dspy.synthesize(None, references(3), size=1, teacher=config(server), run_dir=finished, track=False)
    assert "\n" not in str(refused.value)
    assert requests(server) == 0 and outcome(finished) == before


def test_a_folder_that_another_process_works_on_is_refused(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.5)
    folder = tmp_path / "compile"
    with child(lambda: compiled(server, folder), folder) as process:
        until(lambda: requests(server) > 0)
        with pytest.raises(RunDirError, match="another process is working on") as refused:
            compiled(server, folder)
        assert "\n" not in str(refused.value) and process.is_alive()
    server.control(latency=0)
    assert compiled(server, folder, "gepa", max_calls=40).path.exists(), "its lock went with it"


# --- Ctrl-C


def command(server: SimulatedTeacher, home: Path, optimizer: str) -> list[str]:
    """A compile by command line."""
    (home / "references.jsonl").write_text("".join(json.dumps(each) + "\n" for each in references(10)))
    for role in ("teacher", "judge"):
        model = {"model": f"openai/{role}", "api_base": server.base_url, "max_tokens": 512, "temperature": 0}
        (home / f"{role}.yaml").write_text(json.dumps(model))
    (home / "compile.yaml").write_text(json.dumps(SMALL))
    words = "compile --references references.jsonl --teacher teacher.yaml --judge judge.yaml --config compile.yaml"
    words += f" --optimizer {optimizer} --evaluations 10 --out compile"
    return [sys.executable, "-m", "refed_dspy.cli", *words.split()]


@pytest.mark.slow
def test_ctrl_c_ends_the_command_within_seconds(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.05)
    given = command(server, tmp_path, "gepa")
    with subprocess.Popen(given, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
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
    assert "sent" not in outcomes, "what was cancelled is booked"
    assert answers(tmp_path / "compile") == outcomes["ok"]
    assert outcomes["ok"] <= server.stats()["answered"] <= outcomes["ok"] + outcomes.get("cancelled", 0)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["mipro", "simba", "bootstrap"])
def test_ctrl_c_ends_any_optimizer_and_leaves_the_journal_whole(
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
    kept, asked = answers(folder), requests(server)
    assert set(outcomes) <= {"ok", "cancelled"} and kept == outcomes["ok"] > 0
    assert sum(outcomes.values()) == asked
    server.control(latency=0)
    made = compiled(server, folder, optimizer, max_calls=asked + 5)
    assert made.stopped == "max_calls" and requests(server) <= asked + 5


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


def test_a_metric_of_ones_own_that_breaks_ends_it_and_is_told_as_it_is(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    def broken(example: Any, prediction: Any, trace: Any = None) -> float:
        raise ZeroDivisionError("my metric")

    with pytest.raises(ZeroDivisionError, match="my metric"):
        compiled(server, tmp_path / "compile", "gepa", program=Answerer(), examples=questions(10), metric=broken)
    with suppress(RunDirError), Ledger.read(tmp_path / "compile") as ledger:
        assert ledger.db.execute("SELECT count(*) FROM evaluations").fetchone() == (0,)


def test_half_a_character_in_answers_does_not_end_a_compile(tmp_path: Path) -> None:
    """Models write them, now and then, as "\\ud83d" in their JSON: here they could become demonstrations."""
    writer = Writer()
    writer.on_request = lambda _: json.dumps({"answer": "whole" if len(writer.requests) % 3 else "half \ud83d"})
    settings: dict[str, Any] = {"train": 3, "validation": 2, "test": 2, "track": False, "optimizer": "bootstrap"}
    made = refed_dspy.compile(
        Answerer(), questions(10), metric=full_marks, teacher=fake_lm(writer), out=tmp_path / "compile", **settings
    )
    assert made.proof is not None
