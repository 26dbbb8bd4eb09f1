"""Workers that end: all of a node at once, again and again, and while the run is stopped."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refed_dspy.errors import RunStopped
from refed_dspy.plugins.cluster import crew as crews
from refed_dspy.plugins.cluster.coordinator import Coordinator
from refed_dspy.plugins.cluster.crew import Crew, Watching
from refed_dspy.plugins.cluster.leases import NOTHING
from refed_dspy.plugins.cluster.worker import Ended, How
from refed_dspy.teachers.progress import Progress
from tests.plugins.cluster.here import Here
from tests.support.said import Said
from tests.support.scripted_batches import until

MANY, FEW = 12, 2


class RayTaskError(Exception):
    """A worker's bug, as Ray brings it."""

    cause = ZeroDivisionError("a bug")

    def as_instanceof_cause(self) -> Exception:
        return self.cause


class Nodes:
    """What stands for Ray: a node with many slots and one with few, whose workers end when the test says so."""

    def __init__(self) -> None:
        self.alive = {"large": MANY, "small": FEW}
        self.tasks: dict[str, dict[str, Future[Ended]]] = {"large": {}, "small": {}}
        self.dying: Exception | None = None
        """What ends each worker at once."""

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "NodeManagerAddress": name, "Alive": True, "Resources": {"refed_worker": slots}}
            for name, slots in self.alive.items()
        ]

    def remote(self, _: Any) -> Any:
        def options(name: str, node: str, **_: Any) -> Any:
            task = self.tasks[node][name] = Future()
            if self.dying is not None:
                task.set_exception(self.dying)
            return SimpleNamespace(remote=lambda *_: SimpleNamespace(future=lambda: task))

        return SimpleNamespace(options=options)

    def end(self, node: str, how: Ended | Exception) -> None:
        """All workers on this node end."""
        for task in self.tasks[node].values():
            if isinstance(how, Exception):
                task.set_exception(how)
            else:
                task.set_result(how)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.exceptions", SimpleNamespace(RayTaskError=RayTaskError))
    monkeypatch.setattr(crews, "on_node", lambda node: {"node": node["NodeID"]})
    monkeypatch.setattr(crews, "REPORTED", 0.02)
    return Nodes()


@pytest.fixture
def crew(nodes: Nodes, tmp_path: Path) -> Iterator[Crew]:
    made = Coordinator(tmp_path / "coordinator.sqlite", shards=20, size=1000, job="first")
    yield Crew(nodes, tmp_path, "mark", Here(made), Watching(tmp_path, Progress(1000)))
    made.close()


@pytest.mark.parametrize("how", [RuntimeError("the node died"), Ended(How.LOST, "the coordinator is lost")])
async def test_all_workers_of_a_node_end_at_once(how: Ended | Exception, crew: Crew, nodes: Nodes) -> None:
    running = asyncio.create_task(crew.run())
    await until(lambda: len(crew.working) == MANY + FEW)
    del nodes.alive["large"]
    nodes.end("large", how)
    await until(lambda: len(crew.working) == FEW)
    await asyncio.sleep(0.1)
    assert not running.done()
    assert crew.deaths == (MANY if isinstance(how, Exception) else 0) and crew.times_in_a_row == 1
    await crew.coordinator.ask("stop")
    nodes.end("small", Ended(How.DONE))
    await asyncio.wait_for(running, 5)


async def test_workers_that_die_again_and_again_end_the_run(
    said: Said, crew: Crew, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "REST", 0.03)
    nodes.dying = RuntimeError("out of memory")
    with said.by(RunStopped):
        await asyncio.wait_for(crew.run(), 20)


async def test_a_bug_ends_the_run(crew: Crew, nodes: Nodes) -> None:
    nodes.dying = RayTaskError()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(crew.run(), 5)


@pytest.mark.parametrize("how", [RuntimeError("the node died"), RayTaskError()])
async def test_whoever_ends_while_the_run_is_stopped_the_others_get_their_time(
    how: Exception, crew: Crew, nodes: Nodes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(crews, "DEATHS", 1)
    running = asyncio.create_task(crew.run())
    await until(lambda: len(crew.working) == MANY + FEW)
    running.cancel()
    await asyncio.wait([running])
    stopping = asyncio.create_task(crew.stop())
    nodes.end("large", how)
    await asyncio.sleep(0.1)
    assert not stopping.done()
    nodes.end("small", Ended(How.DONE))
    await asyncio.wait_for(stopping, 1)
    assert not crew.working
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == MANY and {line.partition(" on ")[0] for line in told} == {
        f"worker-{n + 1}" for n in range(MANY)
    }


async def test_a_worker_that_is_silent_about_its_shard_is_given_up(
    crew: Crew, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crews, "SILENT", 0.1)
    running = asyncio.create_task(crew.run())
    await until(lambda: len(crew.working) == MANY + FEW)
    coordinator = crew.coordinator.actor
    lease = coordinator.take("worker-1")
    coordinator.report("worker-1", lease.shard, lease.epoch, NOTHING)
    assert coordinator.take("worker-2") is not None, "which may be loading models before its first word"
    await until(lambda: "worker-1" in crew.given_up)
    assert list(crew.given_up) == ["worker-1"]
    running.cancel()
    await asyncio.wait([running])
