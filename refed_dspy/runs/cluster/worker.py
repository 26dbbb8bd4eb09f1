"""A worker: it takes a lease of a shard, works on it, gives it back, and takes the next one.

It runs in a task of Ray on some node, and reaches the coordinator as an actor. Only numbers, digests and paths travel.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from refed_dspy.errors import RefedError, RunDirError, RunStopped, one_line
from refed_dspy.runs.cluster.leases import Lease
from refed_dspy.runs.cluster.shard_work import ShardWork, Used
from refed_dspy.runs.cluster.shards import shard_folder

EVERY = 1.0
"""Seconds between two reports of a worker, and between two looks for a lease where there was none."""
LOST = 30.0
"""Seconds without an answer of the coordinator after which a worker ends: somebody else may have its shard."""
MARK = "cluster"
"""The file in a run's folder by which a worker sees that it has the driver's folder before it."""


class Ended(NamedTuple):
    """How a worker ended: `error` is empty where there was nothing left to do."""

    name: str
    error: str = ""


class Coordinator:
    """The coordinator, as a worker asks it. Raises RunStopped where it does not answer for LOST seconds."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def ask(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayError

        try:
            asked = getattr(self._actor, method).remote(*arguments)
            return await asyncio.wait_for(asyncio.wrap_future(asked.future()), LOST)
        except (RayError, TimeoutError) as error:
            raise RunStopped(f"the coordinator does not answer: {one_line(error) or 'too late'}") from None


class Worker:
    """Works on leases of the run in `run` until none is left. `workers`: how many there are."""

    def __init__(self, run: Path, name: str, coordinator: Coordinator, workers: int) -> None:
        self.run_dir, self.name, self.coordinator, self.workers = run, name, coordinator, workers

    async def run(self) -> Ended:
        """How it ended; an error of the run's is part of that, a bug is raised."""
        try:
            while True:
                lease = await self.coordinator.ask("take", self.name)
                if lease is not None:
                    if not await self._work(lease):
                        return Ended(self.name)
                elif await self.coordinator.ask("finished"):
                    return Ended(self.name)
                else:
                    await asyncio.sleep(EVERY)
        except RefedError as error:
            return Ended(self.name, one_line(error, 600))

    async def _work(self, lease: Lease) -> bool:
        """Whether the worker goes on after this lease: not where it has lost it, or the run ends."""

        async def claim(digests: Sequence[bytes]) -> frozenset[bytes]:
            return frozenset(await self.coordinator.ask("claim", lease.shard, digests))

        folder = shard_folder(self.run_dir, lease.shard)
        try:
            work = ShardWork(folder, lease, self.workers, claim)
        except RunDirError as error:  # its last worker may be frozen, and hold the file
            await self.coordinator.ask("put_off", self.name, lease.shard, lease.epoch, one_line(error, 300))
            return True
        used = work.before
        task = asyncio.ensure_future(work.run())
        try:
            goes_on = await self._report_until_done(task, work, lease)
            used = await task
        except asyncio.CancelledError:
            goes_on, used = False, work.used()
        finally:
            await self._give_back(lease, used if used != work.before else work.used())
        return goes_on
