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
from tests.support.interrupted_compiles import compiled, config, full_marks, outcome
from tests.support.said import Said
from tests.support.scripted_engine import references

server, without_words = compiling.terse_server, compiling.without_words


@pytest.fixture(scope="module")
def finished(shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    reset_server(shared_server)
    shared_server.control(response_words=8, items=1)
    folder = tmp_path_factory.mktemp("finished") / "compile"
    compiled(shared_server, folder, "bootstrap")
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "gepa"},
        {"seed": 5},
        {"evaluations": 11},
        {"options": {"max_rounds": 2}},
        {"instructions_per_feature": 2},
        {"features": {"form": "Its form."}},
        {"guidance": {"response_generation": "Be brief."}},
        {"train": 2},
        {"test": 3},
        {"examples": references(12)},
        {"teacher": {"model": "openai/other"}},
        {"teacher": {"temperature": 0.4}},
        {"teacher": {"max_tokens": 600}},
        {"judge": {"params": {"top_p": 0.5}}},
        {"reflection": {"model": "openai/big"}},
        {"program": Answerer(), "examples": questions(10), "metric": full_marks},
    ],
    ids=lambda change: " ".join(change),
)
def test_another_compile_in_the_same_folder_is_refused_with_the_difference(
    said: Said, server: SimulatedTeacher, finished: Path, change: dict[str, Any]
) -> None:
    before = outcome(finished)
    models = ("teacher", "judge", "reflection")
    settings: dict[str, Any] = {k: config(server, **v) if k in models else v for k, v in change.items()}
    with said.by(RunDirError) as refused:
        compiled(server, finished, settings.pop("optimizer", "bootstrap"), **settings)
    assert "\n" not in str(refused.value)
    assert requests(server) == 0 and outcome(finished) == before


def test_a_runs_folder_is_refused_for_a_compile(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    refed_dspy.synthesize(None, references(3), size=1, teacher=config(server), run_dir=tmp_path / "run", track=False)
    asked = requests(server)
    with said.by(RunDirError):
        compiled(server, tmp_path / "run")
    assert requests(server) == asked
    assert refed_dspy.read_run(tmp_path / "run").complete


def test_a_compiles_folder_is_refused_for_a_run(said: Said, server: SimulatedTeacher, finished: Path) -> None:
    before = outcome(finished)
    with said.by(RunDirError):
        refed_dspy.resume(finished)
    with said.by(RunDirError):
        refed_dspy.synthesize(None, references(3), size=1, teacher=config(server), run_dir=finished, track=False)
    assert requests(server) == 0 and outcome(finished) == before
