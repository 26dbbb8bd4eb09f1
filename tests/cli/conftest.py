from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from refed_dspy import synthesize
from tests.support.scripted_engine import Writer, fake_lm, references


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a file of references."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("REFED_") and name != "REFED_CACHE"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("REFED_TRACK", "false")
    (tmp_path / "references.jsonl").write_text("".join(json.dumps(r) + "\n" for r in references(12)))
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of five rows, for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    synthesize(None, references(2), size=5, teacher=fake_lm(Writer()), run_dir=folder, track=False)
    return folder


@pytest.fixture
def run(finished: Path, home: Path) -> Path:
    """A copy of it, in `run` of the working folder."""
    return Path(shutil.copytree(finished, home / "run"))
