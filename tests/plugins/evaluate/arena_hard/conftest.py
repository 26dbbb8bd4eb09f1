from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.plugins.evaluate.conftest import JUDGE
from tests.support.command_line import judge_file
from tests.support.toy_arena_hard import VERDICTS, make_clone, make_environment, write_answers

QUESTIONS = 12


@pytest.fixture(scope="session")
def toy_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which the stand-in for Arena-Hard's code runs."""
    return make_environment(tmp_path_factory.mktemp("toy") / "environment")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone", QUESTIONS)


def furnished(folder: Path, server: SimulatedTeacher) -> Path:
    """The folder of a clone, with two models' answers, and the settings of a judge at `server`."""
    server.control(verdicts=VERDICTS)
    write_answers(folder / "short.jsonl", QUESTIONS, words=2)
    write_answers(folder / "long.jsonl", QUESTIONS, words=9)
    judge_file(folder, server, **JUDGE)
    return folder


@pytest.fixture
def home(clone: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A furnished folder with a clone, which is the working folder."""
    monkeypatch.chdir(clone.parent)
    return furnished(clone.parent, server)
