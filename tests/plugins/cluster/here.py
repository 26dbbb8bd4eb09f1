"""The real coordinator and real workers in this process, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from refed_dspy.plugins.cluster import drive, worker
from refed_dspy.plugins.cluster.coordinator import Coordinator, CoordinatorActor
from refed_dspy.plugins.cluster.crew import ERRORS, GRACE, Crew
from refed_dspy.plugins.cluster.worker import Ended, Worker

WORKERS = ("a", "b")


class Here(CoordinatorActor):
    """The coordinator in this process."""

    def __init__(self, made: Coordinator, patience: float = 1) -> None:
        super().__init__(made, patience)
        self.asked = list[str]()

    async def ask(self, method: str, *arguments: Any) -> Any:
        self.asked.append(method)
        return getattr(self.actor, method)(*arguments)


class CrewHere(Crew):
    """Two workers that are tasks of this process."""

    tasks: list[asyncio.Task[Ended]]

    async def run(self) -> None:
        """Raises as a crew on nodes where all have failed."""
        await self.coordinator.ask("workers", WORKERS)
        workers = [Worker(self.folder, name, self.coordinator) for name in WORKERS]
        self.tasks = [asyncio.ensure_future(each.run()) for each in workers]
        await asyncio.wait(self.tasks)
        await self._show()
        ended = [task.result() for task in self.tasks]
        if all(each.how in ERRORS for each in ended):
            raise ERRORS[ended[-1].how](ended[-1].why)

    async def stop(self) -> None:
        await self.coordinator.ask("stop")
        await asyncio.wait(self.tasks, timeout=GRACE)
        await self._show()

    async def _show(self) -> None:
        at_work = {"nodes": 1, "workers": len(WORKERS), "deaths": 0, "slow": []}
        self.watching.show(await self.coordinator.ask("totals"), at_work)


def work_here(patch: pytest.MonkeyPatch) -> None:
    """Have jobs work in this process."""

    patch.setattr(drive, "connected", connected)
    patch.setattr(drive, "beside_driver", lambda _: {})
    patch.setattr(drive, "CoordinatorActor", Here)
    patch.setattr(drive, "Crew", CrewHere)
    patch.setattr(worker, "REPORTED", 0.05)
    patch.setattr(worker, "EVERY", 0.01)


@contextmanager
def connected(_: str) -> Iterator[Any]:
    """What stands for Ray: no nodes, and an actor is its object, which ends with the connection."""
    with ExitStack() as actors:

        def begun(kind: type[Any], *arguments: Any, **keywords: Any) -> Any:
            return actors.enter_context(closing(kind(*arguments, **keywords)))

        def remote(kind: type[Any]) -> Any:
            return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=partial(begun, kind)))

        yield SimpleNamespace(nodes=list, remote=remote)
