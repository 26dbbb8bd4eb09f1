"""What synth, status, resume and export say of filters and their judges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import save_program
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs import PairwiseJudge
from tests.support.command_line import DOWN, judge_file, refed, refusal, synth, teacher_file, without_numbers, written
from tests.support.said import Said

LOW, ABSTAINED = "below 5", "judge abstained"


@pytest.fixture
def home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with references, and the figures that need no model."""
    monkeypatch.setenv("REFED_EMBEDDINGS", "false")
    return home


@pytest.fixture(scope="session")
def once() -> dict[str, Path]:
    """The finished run of `filtered`, once it is made."""
    return {}


@pytest.fixture
def filtered(
    home: Path, server: SimulatedTeacher, once: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of 4 samples that a judge gave the highest grade, and more that it dropped."""
    written(home, "run.yaml", "filters: [refusals, {rubric: {at_least: 5}}]\n")
    teacher = teacher_file(home, server, concurrency=4)
    judge = judge_file(home, server)
    if "run" not in once:
        made = synth("--size", 4, "--teacher", teacher, "--judge", judge, "--config", "run.yaml")
        assert made.exit_code == 0, made.output
        once["run"] = Path(shutil.copytree("run", tmp_path_factory.mktemp("filtered") / "run"))
        shutil.rmtree("run")
    return Path(shutil.copytree(once["run"], home / "run"))


def test_status_and_export_tell_what_each_filter_dropped_and_why(said: Said, filtered: Path) -> None:
    facts = json.loads(refed("status", "run", "--json").stdout)
    *_, refusals, rubric = facts["filters"]
    assert (refusals["filter"], refusals["dropped"]) == ("refusals", 0) and rubric["kept"] == 4
    assert rubric["dropped"] == sum(rubric["reasons"].values()) == refusals["kept"] - 4 > 0
    assert set(rubric["reasons"]) <= {LOW, ABSTAINED}
    shown = refed("status", "run").stdout
    assert all(f"{count} {reason}" in shown for reason, count in rubric["reasons"].items())
    said(without_numbers(refed("export", "run", "--dropped").output))
    rows = [json.loads(line) for line in Path("dropped.jsonl").read_text().splitlines()]
    assert len(rows) == rubric["dropped"]
    for row in rows:
        assert row["filter"] == "rubric" and row["reason"] and row["instruction"] and row["improved_response"]
        assert (row["score"] is None) == (row["reason"] == ABSTAINED)
    dropped = ("export", "run", "--dropped")
    said([
        refusal(refed(*dropped)), refusal(refed(*dropped, "--format", "parquet", "--out", "x")),
        refusal(refed(*dropped, "--out", "none/x.jsonl")), refed("export", "run").output,
    ])  # fmt: skip
    assert refed(*dropped, "--force").exit_code == 0


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
    assert grown.exit_code == 0 and json.loads(refed("status", "../run", "--json").stdout)["kept"] == 6
    other = written(home, "moved.yaml", f"model: sim/other-model\napi_base: {server.root}/v1/\n")
    said(refusal(refed("resume", "../run", "--size", 7, "--judge", "down.yaml")))
    assert refed("resume", "../run", "--size", 7, "--judge", f"../{other}").exit_code == 0
    assert server.stats()["repeated"] == 0


def test_a_judge_that_is_the_teacher_moves_with_it(
    home: Path, server: SimulatedTeacher, second_server: SimulatedTeacher
) -> None:
    """No judge is named: the endpoint moves, and nobody is asked at the old address any more."""
    written(home, "run.yaml", "filters: [{rubric: {at_least: 2}}]\n")
    made = synth("--size", 1, "--teacher", teacher_file(home, second_server, concurrency=2), "--config", "run.yaml")
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
    said(without_numbers(refusal(ended, 1)))


def test_methods(said: Said, home: Path, server: SimulatedTeacher) -> None:
    teacher = teacher_file(home, server)
    assert synth("--size", 3, "--teacher", teacher, "--method", "sample-level").exit_code == 0
    assert json.loads(refed("status", "run", "--json").stdout)["usage"]["sample_feedback"]["calls"] == 3
    assert refed("resume", "run", "--size", 5).exit_code == 0 and server.stats()["repeated"] == 0
    other = refusal(synth("--size", 3, "--teacher", teacher))
    said((other.partition(": ")[2].partition(";")[0], refusal(synth("--method", "smaple-level", "--teacher", teacher))))
