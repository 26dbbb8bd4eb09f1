"""Comparisons that stop and start again: caps, a dead endpoint, and folders that hold something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, compare
from refed_dspy.cli.main import app
from refed_dspy.errors import ExportError, RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import CAPPED
from tests.plugins.compare.helpers import SMALL, Judge, config, facts, line, run
from tests.support.compiling import requests
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


def written(folder: Path, **settings: Any) -> int:
    """A comparison of one instruction by scripted models; how many requests it sent."""
    teacher, judge = Writer(per_call=1), Judge()
    models = {"teacher": fake_lm(teacher), "judge": fake_lm(judge), "size": 1}
    compare(references=references(6), out=folder, **{**SMALL, **models, **settings})
    return len(teacher.requests) + len(judge.requests)


def test_a_file_that_cannot_be_written_loses_no_answer(said: Said, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with said.by(ExportError):
        written(tmp_path)
    assert not (tmp_path / "ledger.sqlite").exists()
    Ledger.create(tmp_path).close()  # as where it came while the comparison was at work
    with said.by(RunStopped):
        written(tmp_path)
    (tmp_path / "rows.jsonl").rmdir()
    assert written(tmp_path) == 0


def test_a_cap_leaves_a_table_and_says_how_to_go_on(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    short = run(server, tmp_path / "c", size=6, max_calls=40)
    assert 0 < short.instructions < 6 and requests(server) <= 40 and short.state == CAPPED
    said(short.stopped.partition(" after ")[0])
    assert short.stopped.rpartition("=")[0].endswith("max_calls") and "resume" not in short.stopped
    assert not (tmp_path / "c" / "samples-at-cap.jsonl").exists()
    text = (tmp_path / "c" / "comparison.txt").read_text()
    assert text.splitlines() == short.lines() and short.lines()[-1].endswith(short.stopped)
    assert line(short, "sample-level").rows == short.instructions
    made = run(server, tmp_path / "c", size=6, max_calls=10_000)
    assert short.state == made.state == "done", "the folder's, now"
    assert made.instructions == 6 and not made.stopped and server.stats()["repeated"] == 0
    assert (tmp_path / "c" / "comparison.txt").read_text() != text


@pytest.mark.slow
def test_a_cap_before_the_first_row_is_one_line(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    with said.by(RunStopped) as raised:
        run(server, tmp_path / "c", max_calls=4)
    assert "\n" not in str(raised.value)
    assert run(server, tmp_path / "c", max_calls=10_000).instructions == 9 and server.stats()["repeated"] == 0


@pytest.mark.slow
def test_an_endpoint_that_dies_leaves_the_table_of_what_there_is(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(down_after=70)
    teacher = config(server, retries=0, timeout=2)
    judge = config(server, model="sim/other-model", retries=0, timeout=2)
    with pytest.raises(RunStopped):
        run(server, tmp_path / "c", data=references(80), teacher=teacher, judge=judge, size=200)
    assert 0 < facts(tmp_path / "c")["instructions"] < 200


def test_another_comparison_in_the_folder_is_refused(said: Said, tmp_path: Path) -> None:
    written(tmp_path)
    files = (tmp_path / "comparison.json").read_bytes()
    others: list[dict[str, Any]] = [
        {"against": "reference-level"},
        {"grades": True},
        {"seed": 3},
        {"programs": {"instruction-only": "instruction-only", "sample-level": "sample-level"}},
        {"judge": fake_lm(judge := Judge(), "fake/other", temperature=0.5)},
        {"features": {"topic": "what it is about"}},
    ]
    for other in others:
        with said.by(RunDirError):
            written(tmp_path, **other)
    assert not judge.requests and (tmp_path / "comparison.json").read_bytes() == files


@pytest.mark.slow
def test_a_compiled_program_is_part_of_what_a_comparison_is(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    """DSPy passes over the predictors of a compiled program inside another one."""

    def tuned(wish: str) -> dict[str, Any]:
        program = ReferenceLevelFeedback(guidance={"response_improvement": wish})
        program._compiled = True
        return {"plain": "instruction-only", "ours": program}

    run(server, tmp_path / "c", tuned("Be brief."), against="plain", size=2)
    with said.by(RunDirError):
        run(server, tmp_path / "c", tuned("Be long."), against="plain", size=2)


@pytest.mark.slow
def test_a_folder_of_a_run_is_refused_and_one_of_a_comparison_is_no_run(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    refed_dspy.synthesize(None, references(3), size=2, teacher=config(server), run_dir=tmp_path / "run")
    with said.by(RunDirError):
        run(server, tmp_path / "run")
    run(server, tmp_path / "c", size=2)
    with said.by(RunDirError):
        refed_dspy.synthesize(None, references(6), size=2, teacher=config(server), run_dir=tmp_path / "c")
    done = CliRunner().invoke(app, ["resume", str(tmp_path / "c")])
    assert done.exit_code == 2
    said(done.output)
