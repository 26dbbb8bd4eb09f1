"""One cap over all shards: no dollar over it by the server's bill, though a node or the driver dies."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest

from benchmarks.cluster_caps import capped
from benchmarks.cluster_runs import ended
from benchmarks.nodes import Nodes, wait_until
from benchmarks.simulated import SimulatedTeacher
from tests.plugins.cluster.ray.conftest import Begin

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("seed", range(3))
def test_no_dollar_over_the_cap(seed: int, nodes: Nodes, server: SimulatedTeacher, tmp_path: Path) -> None:
    made = capped(nodes, server, tmp_path, random.Random(seed))
    assert made.over <= 0 and made.wrong == 0
    assert made.clean, made.told


def test_the_cap_of_a_killed_driver_stays(run: Begin) -> None:
    made = run(300, settings={"max_calls": 200})
    driver = made.start()
    wait_until(partial(made.has_sent, 80))
    os.kill(driver.pid, signal.SIGKILL)
    ended(driver)
    del made.settings["max_calls"]
    code, told = made.complete()
    assert code == 1 and "max_calls 200 is reached" in told, told
    assert 80 < made.requests() <= 200
