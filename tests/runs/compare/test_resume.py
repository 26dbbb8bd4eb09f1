"""Comparisons that stop and start again: caps, kills, a dead endpoint, and folders that hold something else."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
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
from tests.runs.compare.helpers import (
    SMALL,
    Judge,
    answers,
    config,
    facts,
    line,
    requests,
    run,
)
from tests.support import ROOT
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


@pytest.mark.slow
def test_the_same_command_again_asks_nothing_and_says_the_same(server: SimulatedTeacher, tmp_path: Path) -> None:
    first = run(server, tmp_path / "c")
    made = [file for file in (tmp_path / "c").iterdir() if "ledger" not in file.name and file.name != ".checked"]
    files = {file.name: file.read_bytes() for file in made}
    before = requests(server)
    again = run(server, tmp_path / "c")
    assert requests(server) == before and again.table() == first.table()
    same = {name for name in files if (tmp_path / "c" / name).read_bytes() == files[name]}
    assert same == set(files)
    larger = run(server, tmp_path / "c", size=10)
    assert larger.instructions == 10 and server.stats()["repeated"] == 0


def test_a_file_that_cannot_be_written_loses_no_answer(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    (tmp_path / "c" / "rows.jsonl").mkdir(parents=True)
    with said.by(ExportError):
        run(server, tmp_path / "c")
    assert not requests(server)
    Ledger.create(tmp_path / "c").close()  # as where it came while the comparison was at work
    with said.by(RunStopped):
        run(server, tmp_path / "c")
    (tmp_path / "c" / "rows.jsonl").rmdir()
    before = requests(server)
    run(server, tmp_path / "c")
    assert requests(server) == before


def test_a_cap_leaves_a_table_and_says_how_to_go_on(server: SimulatedTeacher, tmp_path: Path) -> None:
    short = run(server, tmp_path / "c", max_calls=60)
    assert 0 < short.instructions < 9 and requests(server) <= 60
    assert "max_calls 60 is reached" in short.stopped and "the same call with max_calls=" in short.stopped
    assert "resume" not in short.stopped and not (tmp_path / "c" / "samples-at-cap.jsonl").exists()
    text = (tmp_path / "c" / "comparison.txt").read_text()
    assert f"incomplete: {short.stopped}" in text and "sample-level" in text
    assert line(short, "sample-level").rows == short.instructions
    made = run(server, tmp_path / "c", max_calls=10_000)
    assert short.state == made.state == "done", "the folder's, now"
    assert made.instructions == 9 and not made.stopped and server.stats()["repeated"] == 0
    assert (tmp_path / "c" / "comparison.txt").read_text() != text


@pytest.mark.slow
def test_a_cap_in_dollars_holds_over_teacher_and_judge(server: SimulatedTeacher, tmp_path: Path) -> None:
    short = run(server, tmp_path / "c", max_cost=0.05)
    assert "max_cost $0.050 is reached" in short.stopped and short.instructions < 9
    assert short.used.cost <= 0.05
    assert run(server, tmp_path / "c", max_cost=math.inf).instructions == 9


@pytest.mark.slow
def test_a_cap_before_the_first_row_is_one_line(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    with said.by(RunStopped) as raised:
        run(server, tmp_path / "c", max_calls=4)
    assert "\n" not in str(raised.value)
    assert run(server, tmp_path / "c", max_calls=10_000).instructions == 9 and server.stats()["repeated"] == 0


_KILLED = """
import json, sys
from refed_dspy import TeacherConfig, compare
from tests.runs.compare.helpers import SMALL
from tests.support.scripted_engine import references
teacher, judge = (TeacherConfig.model_validate_json(text) for text in sys.argv[1:3])
compare(None, references(6), teacher=teacher, judge=judge, out=sys.argv[3], **SMALL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [10, 40, 90])
def test_killed_anywhere_it_pays_nothing_twice_but_what_was_in_flight(
    server: SimulatedTeacher, tmp_path: Path, after: int
) -> None:
    server.control(latency=0.03)
    configs = (config(server), config(server, model="sim/other-model"))
    models = [model.model_dump_json(exclude_unset=True) for model in configs]
    command = [sys.executable, "-c", _KILLED, *models, str(tmp_path / "c")]
    process = subprocess.Popen(command, cwd=ROOT)
    while server.stats()["answered"] < after and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.control(latency=0)
    made = run(server, tmp_path / "c")
    assert made.instructions == 9 and not made.stopped
    assert server.stats()["repeated"] <= 8, "four units, each of which has two calls on their way at the most"
    assert answers(tmp_path / "c")["response_generation"] == 9


@pytest.mark.slow
def test_an_endpoint_that_dies_leaves_the_table_of_what_there_is(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(down_after=70)
    teacher = config(server, retries=0, timeout=2)
    judge = config(server, model="sim/other-model", retries=0, timeout=2)
    with pytest.raises(RunStopped):
        run(server, tmp_path / "c", data=references(80), teacher=teacher, judge=judge, size=200)
    assert 0 < facts(tmp_path / "c")["instructions"] < 200
    assert "incomplete: " in (tmp_path / "c" / "comparison.txt").read_text()


def test_another_comparison_in_the_folder_is_refused(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    run(server, tmp_path / "c", size=2)
    before, files = requests(server), (tmp_path / "c" / "comparison.json").read_bytes()
    others: list[tuple[dict[str, Any], str]] = [
        ({"against": "reference-level"}, "against was instruction-only, is reference-level"),
        ({"grades": True}, "grades was False, is True"),
        ({"seed": 3}, "seed was 0, is 3"),
        ({"programs": {"instruction-only": "instruction-only", "sample-level": "sample-level"}}, "program.reference"),
        ({"judge": "sim-model"}, "judge.model was"),
        ({"features": {"topic": "what it is about"}}, "features was"),
    ]
    for other, message in others:
        settings = dict(other)
        if "judge" in settings:
            settings["judge"] = config(server, model=f"sim/{settings['judge']}", temperature=0.5)
        with pytest.raises(RunDirError, match=message) as error:
            run(server, tmp_path / "c", size=2, **settings)
        said(str(error.value))
    assert requests(server) == before and (tmp_path / "c" / "comparison.json").read_bytes() == files


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


@pytest.mark.slow
def test_a_hundred_rows_are_read_back_in_no_time(tmp_path: Path) -> None:
    """1,000 rows take two seconds or so; a tenth of them, with all figures, must not take more than this."""
    writer = Writer()
    settings = {**SMALL, "size": 100, "per_reference": 20, "instructions_per_feature": 10}
    models: dict[str, Any] = {"teacher": fake_lm(writer), "judge": fake_lm(Judge()), "out": tmp_path / "c"}
    compare(None, references(6), **models, **settings)
    begun = time.process_time()
    made = compare(None, references(6), **models, **settings)
    assert made.instructions == 100 and time.process_time() - begun < 2.5
