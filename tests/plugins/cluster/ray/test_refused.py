"""What cannot be used is said in one line, and the command ends with code 2."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.cluster_runs import ClusterRun
from benchmarks.nodes import Nodes
from benchmarks.simulated import SimulatedTeacher
from tests.plugins.cluster.ray.conftest import Begin

pytestmark = pytest.mark.cluster


def refused(run: ClusterRun) -> str:
    """What the command says, without the line that it connects."""
    code, told = run.complete(seconds=40)
    lines = [line for line in told.splitlines() if "Ray …" not in line and " samples · " not in line]
    assert (code, len(lines)) == (2, 1), told
    return lines[0]


def test_addresses_where_no_cluster_is(run: Begin, server: SimulatedTeacher) -> None:
    made = run(10)
    made.cluster = "127.0.0.1:9"
    assert "cluster 127.0.0.1:9: does not answer (Connection refused)" in refused(made)
    made.cluster = f"127.0.0.1:{server.port}"
    assert "is no Ray cluster; name its head's address" in refused(made)
    assert not made.folder.exists()


def test_the_cluster_of_this_node_is_gone(run: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(10)
    made.cluster = "auto"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert ":9: does not answer (Connection refused)" in refused(made)
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    assert "cluster auto: no Ray cluster runs here; start one with `ray start`" in refused(made)


@contextmanager
def of_version(nodes: Nodes, version: str) -> Iterator[None]:
    """The cluster says that its Ray is of this version."""
    from ray._raylet import GcsClient

    client = GcsClient(address=nodes.address)
    before = client.internal_kv_get(b"CLUSTER_METADATA", b"cluster")
    other = json.dumps({**json.loads(before), "ray_version": version}).encode()
    client.internal_kv_put(b"CLUSTER_METADATA", other, True, b"cluster")
    try:
        yield
    finally:
        client.internal_kv_put(b"CLUSTER_METADATA", before, True, b"cluster")


def test_another_version_of_ray(run: Begin, nodes: Nodes) -> None:
    with of_version(nodes, "2.58.0"):
        told = refused(run(10))
    assert "Ray: 2.58.0" in told and "2.60" in told


def test_a_folder_that_no_node_sees(run: Begin) -> None:
    made = run(10, constants={"refed_dspy.plugins.cluster.drive:MARK": "written-elsewhere"})
    code, told = made.complete()
    assert code == 2, told
    last = told.splitlines()[-1]
    assert (
        "does not see this folder; choose one on a file system that all nodes share" in last and "on 127.0.0." in last
    )


def test_a_key_that_is_wrong_from_the_start(run: Begin, server: SimulatedTeacher) -> None:
    made = run(10)
    server.control(auth_fails_after=0)
    code, told = made.complete()
    assert code == 2 and "Incorrect API key" in told.splitlines()[-1] and "kept" not in told, told


def test_a_cap_below_one_call(run: Begin) -> None:
    assert "max_cost: " in refused(run(10, settings={"max_cost": 0.000001}))


def test_workers_that_all_end_with_an_error(run: Begin, server: SimulatedTeacher) -> None:
    made = run(100)
    server.control(auth_fails_after=60)
    code, told = made.complete()
    assert code == 1, told
    last = told.splitlines()[-1]
    assert (
        "on 127.0.0." in last
        and "Incorrect API key" in last
        and "samples are kept; continue with: refed resume" in last
    )
    assert last.endswith(f"refed resume {made.folder} --cluster {made.cluster}")
