"""Folders that a compile refuses, and a compile's folder that others refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import RunDirError
from tests.conftest import reset_server
from tests.support import compiling
from tests.support.compiling import Answerer, questions, requests
from tests.support.interrupted_compiles import (
    child,
    compiled,
    config,
    full_marks,
    outcome,
    until,
)
from tests.support.said import Said
from tests.support.scripted_engine import references

server, without_words = compiling.terse_server, compiling.without_words

# --- another call


@pytest.fixture(scope="module")
def finished(shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    reset_server(shared_server)
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
    settings: dict[str, Any] = {
        "optimizer": "bootstrap",
        **{k: config(server, **v) if k in models else v for k, v in change.items()},
    }
    with pytest.raises(RunDirError) as refused:
        compiled(server, finished, settings.pop("optimizer"), **settings)
    assert named in str(refused.value) and "out=…" in str(refused.value) and "\n" not in str(refused.value)
    assert requests(server) == 0 and outcome(finished) == before


def test_another_kind_of_program_is_refused(said: Said, server: SimulatedTeacher, finished: Path) -> None:
    with said.by(RunDirError):
        compiled(server, finished, "bootstrap", program=Answerer(), examples=questions(10), metric=full_marks)
    assert requests(server) == 0


def test_a_runs_folder_is_refused_for_a_compile(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    refed_dspy.synthesize(None, references(3), size=1, teacher=config(server), run_dir=tmp_path / "run", track=False)
    asked = requests(server)
    with said.by(RunDirError):
        compiled(server, tmp_path / "run")
    assert requests(server) == asked
    assert refed_dspy.read_run(tmp_path / "run").complete


def test_a_compiles_folder_is_refused_for_a_resume(said: Said, server: SimulatedTeacher, finished: Path) -> None:
    with said.by(RunDirError):
        refed_dspy.resume(finished)
    assert requests(server) == 0


def test_a_compiles_folder_is_refused_for_a_run(server: SimulatedTeacher, finished: Path) -> None:
    before = outcome(finished)
    with pytest.raises(RunDirError, match="compile") as refused:
        refed_dspy.synthesize(None, references(3), size=1, teacher=config(server), run_dir=finished, track=False)
    assert "\n" not in str(refused.value)
    assert requests(server) == 0 and outcome(finished) == before


def test_a_folder_that_another_process_works_on_is_refused(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(latency=0.5)
    folder = tmp_path / "compile"
    with child(lambda: compiled(server, folder), folder) as process:
        until(lambda: requests(server) > 0)
        with said.by(RunDirError) as refused:
            compiled(server, folder)
        assert "\n" not in str(refused.value) and process.is_alive()
    server.control(latency=0)
    assert compiled(server, folder, "gepa", max_calls=40).path.exists(), "its lock went with it"
