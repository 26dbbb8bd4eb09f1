"""Finished work to show and to share, made once a session; a test that writes takes a copy."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from refed_dspy import compare, synthesize
from refed_dspy.ledger.connection import FILE as LEDGER
from refed_dspy.plugins.share.manifest import files_in
from refed_dspy.plugins.share.share import share
from refed_dspy.runs.result import Synthesis
from tests.support.example_run import shown_run
from tests.support.hostile import EVERY
from tests.support.scripted_engine import Writer, fake_lm, references

FILTERED_SIZE, SHOWN_SIZE = 9, 24
GPT = "openai/gpt-4o-mini"


@pytest.fixture(scope="session")
def filtered_run(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """A run of three references, with rows that a filter dropped."""
    folder, filters = tmp_path_factory.mktemp("run"), [{"random": {"share": 0.5}}]
    return synthesize(
        None, references(3), size=FILTERED_SIZE, per_reference=4, filters=filters, teacher=fake_lm(Writer(), GPT),
        run_dir=folder,
    )  # fmt: skip


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an early and a late filter and with failures; every text of it is hostile."""
    return shown_run(tmp_path_factory.mktemp("shown") / "<b>run", SHOWN_SIZE, EVERY)


def copy_run(run: Synthesis | Path, folder: Path, *statements: str) -> Path:
    """A copy of the run in `folder`, changed by SQL."""
    folder.mkdir(exist_ok=True)
    source = sqlite3.connect((run if isinstance(run, Path) else run.run_dir) / LEDGER)
    copy = sqlite3.connect(folder / LEDGER)
    source.backup(copy)
    for statement in statements:
        copy.execute(statement)
    copy.commit()
    source.close()
    copy.close()
    return folder


def contents_of(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in files_in(path)}


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, with a folder for the Hub in `shared`."""
    folder = tmp_path_factory.mktemp("made")
    synthesize(None, references(2), size=6, teacher=fake_lm(Writer()), run_dir=folder)
    share(folder, folder / "shared", license="mit")
    return folder


@pytest.fixture
def folder(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of that folder, for a single test."""
    return Path(shutil.copytree(run_dir / "shared", tmp_path / "shared"))


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of three programs over six instructions."""
    judge = Writer()
    judge.on_request = lambda request: json.dumps(
        {"reason": "so", **{name: "A>B" if name == "verdict" else "4" for name in judge.fields(request)[1:]}}
    )
    folder = tmp_path_factory.mktemp("comparison")
    compare(
        None, references(3), teacher=fake_lm(Writer()), judge=fake_lm(judge, "judge/model"), out=folder, size=6,
        embeddings=False, track=False, subsets=[4],
    )  # fmt: skip
    return folder
