from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.simulated import SimulatedTeacher

KEY_VARIABLE = "SIMULATED_TEACHER_KEY"
KEY = "sk-simulated-0123456789abcdef"


@pytest.fixture(scope="session")
def shared_server() -> Iterator[SimulatedTeacher]:
    with SimulatedTeacher(latency=0, sigma=0) as server:
        yield server


@pytest.fixture
def server(shared_server: SimulatedTeacher) -> Iterator[SimulatedTeacher]:
    """A simulated endpoint in its own process, without latency, faults or memory of the last test."""
    shared_server.control(
        latency=0, sigma=0, items=10, duplicates=0, faults={}, retry_after=None, limit_per_minute=None,
        auth_fails_after=None, down_after=None, fail_stage=None,
    )  # fmt: skip
    shared_server.reset()
    yield shared_server
    shared_server.control(faults={})


@pytest.fixture(scope="session")
def locked_server() -> Iterator[SimulatedTeacher]:
    """One that asks for the key in KEY_VARIABLE."""
    patch = pytest.MonkeyPatch()
    patch.setenv(KEY_VARIABLE, KEY)
    with SimulatedTeacher(latency=0, sigma=0, key=KEY_VARIABLE) as started:
        patch.undo()
        yield started
