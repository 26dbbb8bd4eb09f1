"""A worker: it takes a lease of a shard, works on it, gives it back, and takes the next one.

It runs in a task of Ray on some node, and asks the coordinator, an actor. Only numbers, digests and paths travel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from refed_dspy.errors import RefedError, RunDirError, RunStopped, one_line
from refed_dspy.runs.cluster.leases import Lease, Reply
from refed_dspy.runs.cluster.shard_work import ShardWork, Used
from refed_dspy.runs.cluster.shards import shard_folder
from refed_dspy.runs.cluster.warned import Warned
from refed_dspy.teachers.progress import Progress

EVERY = 0.5
"""Seconds between two looks for a lease where there was none."""
REPORTED = 1.0
"""Seconds between two reports of a worker, and between two looks of the driver: each costs the coordinator CPU."""
LOST = 30.0
"""Seconds without an answer of the coordinator after which a worker ends: somebody else may have its shard."""

MARK = "cluster"
"""The file in a run's folder by which a worker sees that it has the driver's folder before it."""


class Ended(NamedTuple):
    """How a worker ended: `error` is empty where there was nothing left to do. `lost`: it had lost the coordinator, and
    another worker may find it. `unshared`: it does not see the run's folder."""

    name: str
    error: str = ""
    lost: bool = False
    unshared: bool = False


class CoordinatorLost(RunStopped):
    """The coordinator does not answer."""


class Coordinator:
    """The coordinator, as it is asked by workers and the driver. Raises CoordinatorLost where it does not answer for
    `patience` seconds, and what it raised itself."""

    def __init__(self, actor: Any, patience: float | None = None) -> None:
        self._actor, self._patience = actor, LOST if patience is None else patience

    async def ask(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            asked = getattr(self._actor, method).remote(*arguments)
            return await asyncio.wait_for(asyncio.wrap_future(asked.future()), self._patience)
        except RayTaskError as error:
            if isinstance(error.cause, RefedError):
                raise error.cause from None
            raise
        except (RayError, TimeoutError) as error:
            why = one_line(error, 200) or f"no answer in {self._patience:g} s"
            raise CoordinatorLost(f"the coordinator is lost: {why}") from None


class Worker:
    """Works on leases of the run in `run` until none is left. `workers`: how many there are."""

    def __init__(self, run: Path, name: str, coordinator: Coordinator, workers: int) -> None:
        self.run_dir, self.name, self.coordinator, self.workers = run, name, coordinator, workers
        self.warned = Warned()

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
        except CoordinatorLost as error:
            return Ended(self.name, str(error), lost=True)
        except RefedError as error:
            told = error.__cause__ if isinstance(error.__cause__, RefedError) else error  # without how a shard goes on
            return Ended(self.name, one_line(told, 600))

    async def _work(self, lease: Lease) -> bool:
        """Whether the worker goes on after this lease: not where it has lost it, or the run ends."""

        async def claim(digests: Sequence[bytes]) -> frozenset[bytes]:
            return frozenset(await self.coordinator.ask("claim", lease.shard, digests))

        try:
            work = ShardWork(shard_folder(self.run_dir, lease.shard), lease, self.workers, claim)
        except RunDirError:  # its last worker may be frozen, and hold the file
            await self.coordinator.ask("put_off", self.name, lease.shard, lease.epoch)
            await asyncio.sleep(EVERY)
            return True
        told = await self._report(lease, work.before, None)
        task = asyncio.ensure_future(work.run() if told is Reply.GO_ON else _as_it_is(work.before))
        try:
            with self.warned:
                while told is Reply.GO_ON and not (await asyncio.wait([task], timeout=REPORTED))[0]:
                    told = await self._report(lease, work.now(), work.progress)
                if told is not Reply.GO_ON:
                    task.cancel()
                return await self._settle(lease, work, task) and told is Reply.GO_ON
        finally:
            task.cancel()

    async def _settle(self, lease: Lease, work: ShardWork, task: asyncio.Task[Used]) -> bool:
        """Give the lease back with what the shard has now; raise what the work raised. Whether it was still held."""
        try:
            used = await task
        except asyncio.CancelledError:
            used = work.used()
        except RefedError:
            await self._give_back(lease, work.used())
            raise
        return await self._give_back(lease, used)

    async def _report(self, lease: Lease, used: Used, progress: Progress | None) -> Reply:
        told: dict[str, Any] = {"warned": self.warned.texts}
        if progress is not None:
            told |= {"in_flight": progress.in_flight, "failed": sum(progress.failed.values())}
        return Reply(await self.coordinator.ask("report", self.name, lease.shard, lease.epoch, *used.amounts, told))

    async def _give_back(self, lease: Lease, used: Used) -> bool:
        return bool(
            await self.coordinator.ask("give_back", self.name, lease.shard, lease.epoch, *used.amounts, used.dry)
        )


async def _as_it_is(used: Used) -> Used:
    return used


def work(run: str, mark: str, name: str, coordinator: Any, workers: int) -> Ended:
    """The task of Ray that is a worker. `mark`: what the driver wrote into the run's folder."""
    folder = Path(run)
    with suppress(OSError):
        if (folder / MARK).read_text(encoding="utf-8").strip() == mark:
            return asyncio.run(Worker(folder, name, Coordinator(coordinator), workers).run())
    why = "does not see this folder; choose one on a file system that all nodes share"
    return Ended(name, f"{folder}: {why}", unshared=True)
