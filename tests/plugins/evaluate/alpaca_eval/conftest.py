from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.plugins.evaluate.conftest import JUDGE
from tests.support.command_line import judge_file
from tests.support.toy_alpaca_eval import make_environment

SIZE = 24


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a stand-in for AlpacaEval's code."""
    return make_environment(tmp_path_factory.mktemp("toy") / "environment")


def outputs(generator: str, size: int = SIZE, words: int = 5) -> list[dict[str, Any]]:
    """A model's outputs. Every third is longer."""
    return [
        {
            "instruction": f"Explain to a child what number {n} is.",
            "output": f"{generator} on {n}. " + "More. " * (words * (n % 3)),
            "generator": generator,
            "dataset": "numbers",
        }
        for n in range(size)
    ]


def in_hubs_cache(folder: Path, text: str) -> Path:
    """AlpacaEval's `df_gamed.csv` where the Hub's client leaves it, in a cache at `folder`."""
    repository = folder / "datasets--tatsu-lab--alpaca_eval"
    file = repository / "snapshots" / "a1" / "df_gamed.csv"
    for path, content in ((file, text), (repository / "refs" / "main", "a1")):
        path.parent.mkdir(parents=True)
        path.write_text(content, "utf-8")
    return file


def furnished(folder: Path, server: SimulatedTeacher) -> Path:
    """The folder, with a model's outputs, a baseline's, and the settings of a judge at `server`."""
    server.control(verdicts=["m", "M"])
    (folder / "mine.json").write_text(json.dumps(outputs("mine")), "utf-8")
    (folder / "theirs.json").write_text(json.dumps(outputs("theirs", words=4)), "utf-8")
    judge_file(folder, server, **JUDGE)
    return folder


@pytest.fixture
def home(server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A furnished folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return furnished(tmp_path, server)
