"""The server's answers, short for comparisons."""

from __future__ import annotations

import pytest

from benchmarks.simulated import SimulatedTeacher


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=8, items=3)
    return server
