"""A filtering whose judge is asked by workers: the result of one process, each question paid for once, one cap."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster_runs import CONCURRENCY, ClusterFilter, ended
from benchmarks.nodes import Nodes, processes, wait_until
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.lines import work_lines
from refed_dspy.ledger.connection import JUDGING
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import work_status
from tests.conftest import reset_server
from tests.runs.filter.helpers import outputs

pytestmark = pytest.mark.cluster
ROWS = 200
SHORT = {"max_tokens": 300}
"""Answers whose worst case is small, so that a cap has room for many."""


def filtering(home: Path, server: SimulatedTeacher, cluster: str, rows: int, **more: Any) -> ClusterFilter:
    server.control(latency=0.3, sigma=0.4)
    return ClusterFilter(home, server, cluster, rows, **more)


def result(made: ClusterFilter) -> dict[str, bytes]:
    """The rows, and why."""
    return {name: text for name, text in outputs(made.folder).items() if name.endswith(".jsonl") or "funnel.j" in name}


def charged(made: ClusterFilter) -> tuple[int, int]:
    """Calls and picodollars in the ledger."""
    with closing(sqlite3.connect(made.folder / "ledger.sqlite")) as db:
        calls, cost = db.execute("SELECT count(*), total(cost) FROM calls").fetchone()
    return int(calls), int(cost)


@pytest.fixture(scope="module")
def alone(shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of the rows."""
    reset_server(shared_server)
    made = ClusterFilter(tmp_path_factory.mktemp("alone"), shared_server, "", ROWS)
    assert made.complete()[0] == 0
    return result(made)


@pytest.mark.parametrize("killed", ["worker", "driver", "node"])
def test_what_dies_costs_what_was_in_flight_there(
    killed: str, alone: dict[str, bytes], nodes: Nodes, server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = filtering(tmp_path, server, nodes.address, ROWS)
    driver = made.start()
    wait_until(partial(made.has_sent, 120))
    with Ledger.read(made.folder) as ledger:
        lines = work_lines(work_status(ledger))
    assert lines[0].startswith("running: ") and lines[-1].startswith("cluster: 2 workers on 2 nodes"), lines
    if killed == "worker":
        processes("worker-")[0].kill()
    elif killed == "node":
        nodes.kill(nodes.there[0])
    else:
        os.kill(driver.pid, signal.SIGKILL)
        ended(driver)
        driver = made.start()
    code, told = ended(driver)
    assert code == 0, told
    assert result(made) == alone
    stats = made.server.stats()
    in_flight = CONCURRENCY * (2 if killed == "driver" else 1)
    assert 2 * ROWS <= stats["requests"] <= 2 * ROWS + in_flight, "paid twice for what was answered"
    calls, cost = charged(made)
    assert stats["requests"] <= calls <= 2 * ROWS + in_flight and cost >= made.bill()
    assert not (made.folder / JUDGING).exists()


def test_no_dollar_over_the_cap_and_a_higher_one_goes_on(
    nodes: Nodes, server: SimulatedTeacher, tmp_path: Path
) -> None:
    rows, max_cost = 160, 0.02
    made = filtering(tmp_path, server, nodes.address, rows, settings={"max_cost": max_cost}, teacher=SHORT)
    code, told = made.complete()
    assert code == 1 and "max_cost is reached; paid answers are kept" in told, told
    assert 0.5 * max_cost < made.bill() / 1e12 <= max_cost and charged(made) == (made.requests(), made.bill())
    made.settings["max_cost"] = 1.0
    code, told = made.complete()
    assert code == 0, told
    stats = server.stats()
    assert (stats["requests"], stats["repeated"]) == (2 * rows, 0)
    assert charged(made) == (2 * rows, made.bill())


def test_ctrl_c_gathers_and_the_same_command_goes_on(nodes: Nodes, server: SimulatedTeacher, tmp_path: Path) -> None:
    made = filtering(tmp_path, server, nodes.address, ROWS)
    driver = made.start()
    wait_until(partial(made.has_sent, 100))
    os.killpg(driver.pid, signal.SIGINT)
    code, told = ended(driver, seconds=15)
    assert code == 130 and told.endswith("continue with the same command\n"), told
    assert charged(made)[0] >= 100 and not (made.folder / JUDGING).exists()
    assert made.complete()[0] == 0
    assert made.requests() <= charged(made)[0] <= 2 * ROWS + 2 * CONCURRENCY
