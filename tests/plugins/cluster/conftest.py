from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.data.references import References
from tests.conftest import reset_server
from tests.plugins.cluster.sharded_run import made_run


@pytest.fixture(scope="session")
def made_once(shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, References]:
    """A run's folder whose shards made their samples, and the run's references."""
    folder = tmp_path_factory.mktemp("made") / "run"
    reset_server(shared_server)
    whole = made_run(shared_server, folder)
    reset_server(shared_server)
    return folder, whole


@pytest.fixture
def run(made_once: tuple[Path, References], tmp_path: Path) -> Path:
    """A copy of that run, not gathered yet."""
    return Path(shutil.copytree(made_once[0], tmp_path / "run"))


@pytest.fixture
def whole(made_once: tuple[Path, References]) -> References:
    """Its references."""
    return made_once[1]
