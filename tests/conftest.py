from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from syrupy.assertion import SnapshotAssertion

from benchmarks.simulated import Settings, SimulatedTeacher
from refed_dspy.config import keys
from tests.support.said import Said

if TYPE_CHECKING:
    from tests.support.scripted_batches import ScriptedService

# Only the tests of tracking send anything to MLflow, and none to the store of whoever runs them.
os.environ["REFED_TRACK"] = "false"
_data = tempfile.TemporaryDirectory(prefix="refed-tests-")
os.environ["XDG_DATA_HOME"] = _data.name
# A shell has what it starts in the background ignore Ctrl-C, and so would every command of these tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
KEY_VARIABLE = "SIMULATED_TEACHER_KEY"
KEY = "sk-simulated-0123456789abcdef"
MARKS = ("north", "south")
"""What every text of `two` begins with."""


@pytest.fixture(autouse=True)
def no_known_keys() -> None:
    """A key that an earlier test has used is taken out of no text here."""
    for known in (keys._known, keys._runs, keys._probes, keys._held):
        known.clear()


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has downloaded (weights, benchmarks' code) is there for tests that are marked for it alone."""
    if not {"live", "evaluate", "finetune"} & {mark.name for mark in request.node.iter_markers()}:
        monkeypatch.setenv("REFED_CACHE", f"{_data.name}/cache")


def reset_server(server: SimulatedTeacher) -> None:
    """Reset every setting that a test may have changed, and the counts."""
    server.control(**asdict(Settings(latency=0, sigma=0)))
    server.reset()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[SimulatedTeacher]:
    with SimulatedTeacher(latency=0, sigma=0) as server:
        yield server


@pytest.fixture
def server(shared_server: SimulatedTeacher) -> Iterator[SimulatedTeacher]:
    """A simulated endpoint in its own process, without latency, faults or memory of the last test."""
    reset_server(shared_server)
    yield shared_server
    reset_server(shared_server)


@pytest.fixture(scope="session")
def locked_server() -> Iterator[SimulatedTeacher]:
    """One that asks for the key in KEY_VARIABLE."""
    patch = pytest.MonkeyPatch()
    patch.setenv(KEY_VARIABLE, KEY)
    with SimulatedTeacher(latency=0, sigma=0, key=KEY_VARIABLE) as started:
        patch.undo()
        yield started


@pytest.fixture
def locked(locked_server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedTeacher]:
    """A server that asks for KEY, which is in KEY_VARIABLE."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    reset_server(locked_server)
    yield locked_server
    reset_server(locked_server)


@pytest.fixture(scope="session")
def second_server() -> Iterator[SimulatedTeacher]:
    with SimulatedTeacher(latency=0, sigma=0) as server:
        yield server


@pytest.fixture
def two(server: SimulatedTeacher, second_server: SimulatedTeacher) -> Iterator[tuple[SimulatedTeacher, ...]]:
    """Two endpoints, each of which begins every text with its mark."""
    reset_server(second_server)
    for marked, mark in zip((server, second_server), MARKS, strict=True):
        marked.control(signature=mark, response_words=5)
    yield server, second_server
    reset_server(second_server)


@pytest.fixture
def said(snapshot: SnapshotAssertion, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """Asserts what the package says, by the words in `__snapshots__`."""
    folders = [re.escape(str(tmp_path)), rf"{re.escape(str(tmp_path_factory.getbasetemp()))}/[\w.-]+"]
    return Said(snapshot, folders)


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    """A Batch API in this loop that answers as a test scripts it."""
    from tests.support.scripted_batches import ScriptedService  # takes seconds to import, and few need it

    async with ScriptedService().open() as opened:
        yield opened
