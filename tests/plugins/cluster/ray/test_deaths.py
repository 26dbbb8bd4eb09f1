"""Nodes, drivers and coordinators that die, and workers that freeze: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest

from benchmarks.cluster_runs import CONCURRENCY, ClusterRun, Rows, ended
from benchmarks.nodes import Nodes, processes, wait_until
from tests.plugins.cluster.ray.conftest import Begin

pytestmark = pytest.mark.cluster


def complete(run: ClusterRun) -> Rows:
    """The run's rows, once it is seen that they are all there, each once, and right."""
    rows = Rows.of(run.folder)
    assert (rows.samples, rows.distinct, rows.wrong) == (run.size, run.size, 0)
    return rows


def test_a_node_killed_twice(run: Begin, nodes: Nodes) -> None:
    made = run(400)
    driver = made.start()
    for requests in (150, 450):
        wait_until(partial(made.has_sent, requests))
        nodes.kill(nodes.there[0])
        nodes.add()
    code, told = ended(driver)
    assert code == 0, told
    assert made.requests() - complete(made).answers <= 2 * CONCURRENCY, "sent again: more than was in flight there"
    assert told.count("died; its shard goes to another") == 2, told


def test_the_driver_killed_and_stopped(run: Begin) -> None:
    made = run(400)
    driver = made.start()
    wait_until(partial(made.has_sent, 200))
    os.kill(driver.pid, signal.SIGKILL)
    ended(driver)
    address, made.cluster = made.cluster, ""
    made.settings["cluster"] = address  # in the file this time: what continues it has the address all the same
    driver = made.start()
    wait_until(partial(made.has_sent, 450))
    os.killpg(driver.pid, signal.SIGINT)  # Ctrl-C
    code, told = ended(driver, seconds=12)
    assert code == 130, told
    assert told.endswith(f"continue with the same command or refed resume {made.folder} --cluster {address}\n")
    assert 0 < Rows.of(made.folder).samples < 400, "what was made is gathered"
    code, told = made.complete()
    assert code == 0, told
    assert made.requests() - complete(made).answers <= 4 * CONCURRENCY, "at two ends of two workers"


def test_a_cluster_of_the_runs_own(run: Begin) -> None:
    """It lives as long as the run does."""
    made = run(60)
    made.cluster = "local:2"
    code, told = made.complete()
    assert code == 0, told
    complete(made)


@pytest.mark.parametrize("requests", [0, 100])
def test_a_driver_that_is_told_to_end(run: Begin, requests: int) -> None:
    """While it connects, and at work. Ray's own handlers of SIGTERM would print a stack and end with 15."""
    made = run(400)
    driver = made.start()
    assert driver.stderr is not None and "connecting to Ray" in driver.stderr.readline()
    if requests:
        wait_until(partial(made.has_sent, requests))
    driver.terminate()
    code, told = ended(driver, seconds=12)
    assert code == 143 and "SIGTERM" not in told and "Traceback" not in told, told


def test_the_coordinator_killed_and_a_node_that_joins_later(run: Begin, nodes: Nodes) -> None:
    nodes.have(1)
    made = run(400)
    driver = made.start()
    wait_until(partial(made.has_sent, 100))
    for process in processes("Coordinator"):
        process.kill()
    nodes.add()
    wait_until(lambda: made.server.stats()["in_flight"] > CONCURRENCY)
    code, told = ended(driver)
    assert code == 0, told
    assert made.requests() == complete(made).answers, "nobody had to stop for it"


def test_a_worker_that_freezes_and_wakes(run: Begin) -> None:
    made = run(500, constants={"refed_dspy.plugins.cluster.crew:SILENT": 3.0})
    driver = made.start()
    wait_until(partial(made.has_sent, 200))
    frozen = processes("worker-")[0]
    frozen.suspend()
    time.sleep(7)  # until its shard was given to the other one, which finds the file locked
    frozen.resume()
    code, told = ended(driver)
    assert code == 0, told
    assert "no word for 3 s; its shard goes to another" in told
    assert made.requests() - complete(made).answers <= CONCURRENCY


def test_a_worker_that_never_wakes_is_killed(run: Begin) -> None:
    made = run(300, constants={f"refed_dspy.plugins.cluster.{name}": 3.0 for name in ("crew:SILENT", "crew:FROZEN")})
    driver = made.start()
    wait_until(partial(made.has_sent, 100))
    frozen = processes("worker-")[0]
    frozen.suspend()
    code, told = ended(driver)
    assert code == 0, told
    assert not frozen.is_running() and told.count("died; its shard goes to another") == 1, told
    assert made.requests() - complete(made).answers <= CONCURRENCY
