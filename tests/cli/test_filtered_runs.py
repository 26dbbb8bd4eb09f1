"""What synth, status, resume and export say of filters and their judges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import save_program
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs import PairwiseJudge
from tests.support.command_line import DOWN, judge_file, refed, refusal, synth, teacher_file, written
from tests.support.said import Said


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with references, and the figures that need no model."""
    monkeypatch.setenv("REFED_EMBEDDINGS", "false")
    return home


@pytest.fixture
def filtered(home: Path, server: SimulatedTeacher) -> Path:
    """A run of 4 samples that a judge gave the highest grade, and more that it dropped."""
    written(home, "run.yaml", "filters: [refusals, {rubric: {at_least: 5}}]\n")
    teacher = teacher_file(home, server, concurrency=4)
    made = synth("--size", 4, "--teacher", teacher, "--judge", judge_file(home, server), "--config", "run.yaml")
    assert made.exit_code == 0, made.output
    return home / "run"


def test_status_tells_what_each_filter_dropped_and_why(filtered: Path) -> None:
    facts = json.loads(refed("status", "run", "--json").stdout)
    *_, refusals, rubric = facts["filters"]
    assert (refusals["filter"], refusals["dropped"]) == ("refusals", 0) and rubric["kept"] == 4
    assert rubric["dropped"] == sum(rubric["reasons"].values()) == refusals["kept"] - 4 > 0
    assert set(rubric["reasons"]) <= {"below 5", "judge abstained"}
    shown = refed("status", "run").stdout
    assert f"filters: {rubric['dropped']} dropped by rubric (" in shown
    assert all(f"{count} {reason}" in shown for reason, count in rubric["reasons"].items())


def test_export_dropped(said: Said, filtered: Path) -> None:
    facts = json.loads(refed("status", "run", "--json").stdout)
    result = refed("export", "run", "--dropped")
    assert result.exit_code == 0 and f"{facts['filters'][-1]['dropped']} dropped rows in dropped.jsonl" in result.output
    rows = [json.loads(line) for line in Path("dropped.jsonl").read_text().splitlines()]
    assert len(rows) == facts["filters"][-1]["dropped"]
    for row in rows:
        assert row["filter"] == "rubric" and row["reason"] and row["instruction"] and row["improved_response"]
        assert (row["score"] is None) == (row["reason"] == "judge abstained")
    said(refusal(refed("export", "run", "--dropped")))
    assert refed("export", "run", "--dropped", "--force").exit_code == 0
    said(
        [
            refusal(refed("export", "run", "--dropped", "--format", "parquet", "--out", "x")),
            refusal(refed("export", "run", "--dropped", "--out", "none/x.jsonl")),
        ]
    )
    kept = refed("export", "run")
    assert "4 samples in samples.jsonl" in kept.output


def test_resume_goes_on_with_the_runs_filters_and_judge(
    said: Said,
    filtered: Path,
    server: SimulatedTeacher,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (home / "elsewhere").mkdir()
    written(home, "elsewhere/down.yaml", DOWN)
    monkeypatch.chdir(home / "elsewhere")
    grown = refed("resume", "../run", "--size", 6)
    assert grown.exit_code == 0 and "6 of 6 samples" in grown.output and "dropped by rubric" in grown.output
    other = written(home, "moved.yaml", f"model: sim/other-model\napi_base: {server.root}/v1/\n")
    said(refusal(refed("resume", "../run", "--size", 7, "--judge", "down.yaml")))
    assert refed("resume", "../run", "--size", 7, "--judge", f"../{other}").exit_code == 0
    assert server.stats()["repeated"] == 0


def test_a_judge_that_is_the_teacher_moves_with_it(home: Path, server: SimulatedTeacher) -> None:
    """No judge is named: the endpoint moves, and nobody is asked at the old address any more."""
    written(home, "run.yaml", "filters: [{rubric: {at_least: 2}}]\n")
    with SimulatedTeacher(latency=0, sigma=0) as old:
        made = synth("--size", 1, "--teacher", teacher_file(home, old, concurrency=2), "--config", "run.yaml")
        assert made.exit_code == 0, made.output
    moved = refed("resume", "run", "--size", 2, "--teacher", teacher_file(home, server, concurrency=2))
    assert moved.exit_code == 0, moved.output
    with Ledger.read(home / "run") as ledger:
        asked = dict(ledger.db.execute("SELECT endpoint, count(*) FROM calls WHERE stage='rubric_judge' GROUP BY 1"))
    assert asked[server.base_url] > 0


def test_a_compiled_judges_file_is_found_from_any_folder(
    home: Path,
    server: SimulatedTeacher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = PairwiseJudge()
    compiled.compare.signature = compiled.compare.signature.with_instructions("You compare two answers, strictly.")
    save_program(compiled, home / "judge.json")
    written(home, "run.yaml", "filters: [judge]\njudge_program: judge.json\n")
    settings = ("--judge", judge_file(home, server), "--config", "run.yaml")
    assert synth("--size", 1, "--teacher", teacher_file(home, server, concurrency=2), *settings).exit_code == 0
    (home / "elsewhere").mkdir()
    monkeypatch.chdir(home / "elsewhere")
    assert refed("resume", "../run", "--size", 2).exit_code == 0


def test_a_judge_that_is_down_is_told_before_and_after_the_first_answer(
    said: Said, home: Path, server: SimulatedTeacher
) -> None:
    written(home, "run.yaml", "filters: [judge]\n")
    words = ("--size", 3, "--teacher", teacher_file(home, server), "--config", "run.yaml")
    down = synth(*words, "--judge", written(home, "down.yaml", DOWN))
    said([refusal(down, 1), refusal(synth(*words, "--judge", "nosuch/judge"))])
    nokey = written(home, "nokey.yaml", "model: sim/x\napi_base: http://127.0.0.1:9/v1\napi_key_env: NOT_SET_HERE\n")
    said(refusal(synth(*words, "--judge", nokey)))


def test_a_run_that_its_filters_end_says_what_is_kept(said: Said, home: Path, server: SimulatedTeacher) -> None:
    written(home, "run.yaml", "filters: [{random: {share: 1.0e-12}}]\n")
    ended = synth("--size", 300, "--teacher", teacher_file(home, server), "--config", "run.yaml")
    said(ended.stdout)
    said(refusal(ended, 1))


def test_methods(said: Said, home: Path, server: SimulatedTeacher) -> None:
    teacher = teacher_file(home, server)
    made = synth("--size", 3, "--teacher", teacher, "--method", "sample-level")
    assert made.exit_code == 0 and "sample_feedback: 3 calls" in refed("status", "run", "--tokens").output
    assert "5 of 5 samples" in refed("resume", "run", "--size", 5).output and server.stats()["repeated"] == 0
    said(
        [
            refusal(synth("--size", 3, "--teacher", teacher)),
            refusal(synth("--method", "smaple-level", "--teacher", teacher)),
        ]
    )
