"""Filters inside a run: what counts, what is paid for, what a resume remembers, and when a run gives up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.config.loading import check_config
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ConfigError, RunDirError, RunStopped
from refed_dspy.filters.base import Decision
from refed_dspy.filters.build import build
from refed_dspy.filters.screening import FAR, INSTRUCTIONS_IN_A_ROW, SAMPLES_IN_A_ROW, Streak
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import DecisionRow
from refed_dspy.records import DataRow
from refed_dspy.runs.forecast import forecast
from tests.filters.filtered_runs import WORDS, Even, Teacher, dropped, kept_by, odd, run
from tests.support import ROOT
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm, references

# --- what counts


def test_size_counts_what_is_kept(tmp_path: Path) -> None:
    teacher = Teacher()
    late = Even(of_instruction=False)
    made = run(tmp_path / "run", teacher, [late], size=12)
    assert len(made.samples) == 12 and made.complete
    assert not any(odd(sample.improved_response) for sample in made.samples)
    lost = dropped(tmp_path / "run")
    assert teacher.asked("improved_response") == 12 + len(lost) == len(late.seen)
    assert {(row["filter"], row["reason"], row["score"]) for row in lost} == {("even", "odd", 1.0)}
    assert all(odd(row["improved_response"]) and row["response"] and row["detail"] for row in lost)
    again = Teacher()
    assert run(tmp_path / "run", again, [Even(of_instruction=False)], size=12).complete and not again.requests


def test_an_instruction_is_filtered_before_a_response_is_paid_for(tmp_path: Path) -> None:
    teacher = Teacher()
    made = run(tmp_path / "run", teacher, [Even(of_instruction=True)], size=12)
    assert len(made.samples) == 12 and not any(odd(sample.instruction) for sample in made.samples)
    assert teacher.asked("response") == teacher.asked("improved_response") == 12
    lost = dropped(tmp_path / "run")
    assert len(lost) > 5 and all(row["response"] is row["improved_response"] is None for row in lost)


def test_early_filters_go_first_and_the_first_that_drops_ends_it(tmp_path: Path) -> None:
    teacher = Teacher(text_of=lambda name, n: "no" if name == "improved_response" and n % 3 == 0 else None)
    early, late = Even(of_instruction=True), Even(of_instruction=False)
    early.name, late.name = "first", "last"
    run(tmp_path / "run", teacher, [{"length": {"min_words": 2}}, late, early], size=10)
    assert all(text != "no" for text in late.seen), "what length dropped was not shown to the next"
    with Ledger.read(tmp_path / "run") as ledger:
        order = ledger.db.execute("SELECT DISTINCT filter, position FROM decisions ORDER BY position").fetchall()
        several = ledger.db.execute("SELECT instruction FROM decisions WHERE NOT kept GROUP BY 1 HAVING count(*) > 1")
        guards = [("instruction_guard", 0), ("response_guard", 1)]
        assert order == [*guards, ("length", 2), ("last", 3), ("first", 4)] and not several.fetchall()


def test_many_slots_keep_exactly_the_size(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.005, sigma=0.5)
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url, concurrency=32)
    filters: list[Any] = [{"random": {"share": 0.4}}, {"near_duplicates": {"of": "response"}}]
    made = run(tmp_path / "run", teacher, filters, size=40, count=8)
    assert len(made.samples) == made.status["kept"] == 40
    paid = made.usage["response_generation"]["calls"]
    assert paid == 40 + sum(row["response"] is not None for row in dropped(tmp_path / "run"))
    assert server.stats()["repeated"] == 0 and server.stats()["max_in_flight"] > 8


def test_many_instructions_dropped_at_once_do_not_end_a_run_that_keeps_others(tmp_path: Path) -> None:
    """Five references side by side: a hundred instructions, a tenth of them kept, before there is one sample."""
    teacher = Teacher(text_of=lambda name, n: f"dull {n}" if name == "instruction" and n % 10 else None)
    few = Even(of_instruction=True)
    few.check = lambda row: Decision("dull" not in row.instruction, "dull")  # type: ignore[method-assign]
    made = run(tmp_path / "run", teacher, [few], size=30, count=30)
    assert made.complete and len(dropped(tmp_path / "run")) >= 200


# --- what a resume remembers


def test_after_a_resume_near_duplicates_of_what_was_kept_are_dropped(tmp_path: Path) -> None:
    def task(n: int) -> str:
        return " ".join(f"{word}{n}" for word in WORDS[:8])

    def first(name: str, n: int) -> str | None:
        return task(n) if name == "instruction" else None

    def alike(name: str, n: int) -> str | None:
        return (task(1000 + n) if n % 2 else f"{task(n // 2)}!") if name == "instruction" else None

    for name in ("near_duplicates", "rouge"):
        run(tmp_path / name, Teacher(text_of=first), [name], size=20, count=3)
        before = kept_by(tmp_path / name, name)
        made = run(tmp_path / name, Teacher(text_of=alike), [name], size=36, count=3)
        texts = kept_by(tmp_path / name, name)
        assert made.complete and len(texts) > len(before) >= 20 and dropped(tmp_path / name)
        assert len({text.rstrip("!") for text in texts}) == len(texts)


def test_each_filter_is_reminded_of_what_it_kept_itself_in_order(tmp_path: Path) -> None:
    early, late = Even(of_instruction=True), Even(of_instruction=False)
    late.name = "late"
    run(tmp_path / "run", Teacher(), [early, late], size=6)
    again, once_more = Even(of_instruction=True), Even(of_instruction=False)
    once_more.name = "late"
    run(tmp_path / "run", Teacher(), [again, once_more], size=9)
    assert again.remembered == [text for text in early.seen if not odd(text)]
    assert once_more.remembered == [text for text in late.seen if not odd(text)]


@pytest.mark.slow
def test_killed_and_resumed_it_keeps_the_size_and_no_two_alike(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.03, sigma=0.5, duplicates=0.3)
    (tmp_path / "references.jsonl").write_text("\n".join(map(json.dumps, references(8))))
    (tmp_path / "teacher.yaml").write_text(f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: 16\n")
    filters = [{"near_duplicates": {"threshold": 0.6}}, {"random": {"share": 0.7}}, {"length": {"min_words": 39}}]
    (tmp_path / "run.yaml").write_text(json.dumps({"filters": filters}))
    command = [sys.executable, "-m", "refed_dspy.cli", "synth", "--config", "run.yaml", "--size", "60"]
    command += ["--references", "references.jsonl", "--teacher", "teacher.yaml", "--run-dir", "run"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    ) as process:
        while server.stats()["answered"] < 60:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    time.sleep(0.3)
    made = refed_dspy.resume(tmp_path / "run")
    assert len(made.samples) == 60 and server.stats()["repeated"] <= 16, "those in flight"
    texts = kept_by(tmp_path / "run", "near_duplicates")
    fresh = build(check_config(RunConfig, {"filters": filters[:1]}).filters, 0)[0].filter
    assert all(fresh.check(DataRow(0, text, "")).kept for text in texts)  # type: ignore[union-attr]
    requests = server.stats()["requests"]
    assert len(refed_dspy.resume(tmp_path / "run").samples) == 60 and server.stats()["requests"] == requests


def test_other_filters_are_another_run(said: Said, tmp_path: Path) -> None:
    run(tmp_path / "run", Teacher(), [{"length": {"min_words": 1}}, "refusals"], size=3)
    for other in ([], ["refusals", {"length": {"min_words": 1}}], [{"length": {"min_words": 2}}, "refusals"]):
        with said.by(RunDirError):
            run(tmp_path / "run", Teacher(), other, size=4)
    fresh = Teacher()
    made = run(tmp_path / "other", fresh, [{"length": {"min_words": 2}}], size=3, reuse=tmp_path / "run")
    assert made.complete and not fresh.requests, "another run takes over what was paid for"


# --- filters that drop everything


@pytest.mark.parametrize(("of_instruction", "noun"), [(True, "instructions"), (False, "samples")])
def test_filters_that_drop_everything_end_the_run(tmp_path: Path, of_instruction: bool, noun: str) -> None:
    nothing = {"length": {"min_words": 900}} if not of_instruction else {"random": {"share": 1e-12}}
    teacher = Teacher()
    bounds = {"instructions": INSTRUCTIONS_IN_A_ROW, "samples": SAMPLES_IN_A_ROW}[noun]
    message = (
        f"filters: the last \\d+ {noun} were all dropped, \\d+ of them by .* reuse: "
        ".*run, which pays for nothing twice; "
        "0 of \\d+ samples are kept in .*run$"
    )
    with pytest.raises(RunStopped, match=message) as raised:
        run(tmp_path / "run", teacher, [nothing], size=1000, count=40)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 1
    assert bounds <= len(dropped(tmp_path / "run")) <= bounds + 10 * 32, "and what was in flight"
    paid = len(teacher.requests)
    with pytest.raises(RunStopped, match=message):
        run(tmp_path / "run", teacher, [nothing], size=1000, count=40)
    with pytest.raises(RunStopped, match=message):
        run(tmp_path / "run", teacher, [nothing], size=20, count=40)
    assert len(teacher.requests) == paid, "a start that would only pay for more of the same pays nothing"


def decision(kept: bool) -> DecisionRow:
    return DecisionRow("length", 0, kept, None, "" if kept else "too short", "")


def test_a_filter_that_keeps_few_is_not_taken_for_one_that_keeps_none(said: Said) -> None:
    streak = Streak("samples", 50)
    for n in range(1, 1001):
        streak.count(decision(n % 20 == 0))
    for _ in range(20 * FAR - 1):
        streak.count(decision(False))
        assert not streak.hopeless()
    streak.count(decision(False))
    said(streak.hopeless())
    streak.count(decision(True))
    assert not streak.hopeless()


# --- custom filters, and what is refused


def test_an_error_of_a_custom_filter_names_the_filter(said: Said, tmp_path: Path) -> None:
    broken = Even(of_instruction=True)
    nothing: dict[str, Decision] = {}
    broken.check = lambda row: nothing[row.instruction]  # type: ignore[method-assign]
    with said.by(RunStopped):
        run(tmp_path / "run", Teacher(), [broken])
    broken.check = lambda row: bool(row)  # type: ignore[method-assign, assignment, return-value]
    repair = "filters: even returned a bool; it must be a Decision; repair it and start in a new folder with reuse="
    with pytest.raises(RunStopped, match=f"{repair}'{tmp_path}/run'"):
        run(tmp_path / "run", Teacher(), [broken])
    made = run(tmp_path / "run", Teacher(), [Even(of_instruction=True)], size=3)
    assert made.complete, "nothing of the proposal was stored, so it is decided on anew"
    with said.by(RunDirError):
        refed_dspy.resume(tmp_path / "run", size=4, teacher=fake_lm(Teacher()))


def test_a_repaired_filter_takes_over_what_was_paid_for(said: Said, tmp_path: Path) -> None:
    class Repaired(Even):
        def check(self, row: DataRow) -> Decision:
            return super().check(row)

    run(tmp_path / "run", Teacher(), [Even(of_instruction=True)], size=3)
    with said.by(RunDirError):
        run(tmp_path / "run", Teacher(), [Repaired(of_instruction=True)], size=3)


def test_keep_is_for_data_sets(said: Said, tmp_path: Path) -> None:
    with said.by(ConfigError):
        run(tmp_path / "run", Teacher(), [{"rouge": {"keep": 5}}])
    with said.by(ConfigError):
        run(tmp_path / "run", Teacher(), [Even])
    assert not (tmp_path / "run").exists()


def test_the_forecast_knows_what_filters_drop(tmp_path: Path) -> None:
    run(tmp_path / "run", Teacher(), [Even(of_instruction=False)], size=24, count=30)
    with Ledger.read(tmp_path / "run") as ledger:
        foreseen = forecast(ledger, size=60)
    assert foreseen is not None
    made = run(tmp_path / "run", Teacher(), [Even(of_instruction=False)], size=60, count=30)
    calls = sum(stage["calls"] for stage in made.usage.values())
    assert foreseen.calls == pytest.approx(calls, rel=0.25)
