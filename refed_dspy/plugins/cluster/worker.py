"""A worker: it takes a lease of a shard, works on it, gives it back, and takes the next one.

It runs in a task of Ray on some node, and asks the coordinator, an actor. Only numbers, digests and paths travel.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from refed_dspy.errors import FolderInUse, InputError, NothingKept, RefedError, one_line
from refed_dspy.ledger.connection import take_over
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.cluster.coordinator import CoordinatorActor, CoordinatorLost, Totals
from refed_dspy.plugins.cluster.leases import Amounts, Lease, Reply
from refed_dspy.plugins.cluster.shards import Done, ShardRun, shard_folder
from refed_dspy.teachers.failures import LEAST_CALLS
from refed_dspy.teachers.progress import Progress

MOST = 20
"""Texts of one worker. They travel with each of its reports."""
MOMENT = 0.05
"""Seconds that a claim waits for others: nothing beside an answer's seconds."""
EVERY = 0.5
"""Seconds between two looks for a lease where there was none."""
REPORTED = 1.0
"""Seconds between two reports of a worker, and between two looks of the driver: each costs the coordinator CPU."""
LOST = 30.0
"""Seconds without an answer of the coordinator after which a worker ends: somebody else may have its shard."""
PID = "pid"
"""The name under which a worker tells its process."""
MARK = "cluster"
"""The file in a run's folder by which a worker sees that it has the driver's folder before it."""
log = logging.getLogger("refed_dspy.cluster")


class Warned(logging.Handler):
    """Collects the texts of this package's warnings while it is entered, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = one_line(record.getMessage(), 600)
        if text not in self.texts and len(self.texts) < MOST:
            self.texts.append(text)

    def __enter__(self) -> Warned:
        logging.getLogger("refed_dspy").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("refed_dspy").removeHandler(self)


class Claims:
    """Asks for the worker at `shard` which of some digests belong to other shards. Raises as `CoordinatorActor.ask`."""

    def __init__(self, coordinator: CoordinatorActor, shard: int) -> None:
        self._coordinator, self._shard = coordinator, shard
        self._gathering: list[bytes] = []
        self._asked: asyncio.Future[frozenset[bytes]] | None = None
        """The question that has not gone off yet."""

    async def __call__(self, digests: Sequence[bytes]) -> frozenset[bytes]:
        self._gathering += digests
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._ask())
        others = await asyncio.shield(self._asked)  # one that is cancelled must not end the others' question
        return others.intersection(digests)

    async def _ask(self) -> frozenset[bytes]:
        await asyncio.sleep(MOMENT)
        digests, self._gathering, self._asked = self._gathering, [], None
        return frozenset(await self._coordinator.ask("claim", self._shard, digests))


class How(StrEnum):
    """How a worker ended: nothing was left to do; the run failed there; it cannot use what it was given, such as the
    teacher, or does not see the run's folder; or it lost the coordinator, which another worker may find."""

    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    UNSHARED = "unshared"
    LOST = "lost"


class Ended(NamedTuple):
    """What a worker has to say at its end. `warned`: what it warned of, which no report may have told."""

    how: How
    why: str = ""
    warned: Sequence[str] = ()


class Worker:
    """Works on leases of the run in `run` until none is left."""

    def __init__(self, run: Path, name: str, coordinator: CoordinatorActor) -> None:
        self.run_dir, self.name, self.coordinator = run, name, coordinator
        self.warned = Warned()
        self.failed = set[int]()
        """Shards whose calls failed in a lease of this worker's."""
        self.in_vain, self.kept = 0, 0
        """Calls in vain since the run had so many samples."""

    async def run(self) -> Ended:
        """How it ended; an error of the run's is part of that, a bug is raised."""
        with self.warned:
            try:
                await self._work_on_leases()
            except CoordinatorLost as error:
                return Ended(How.LOST, str(error), self.warned.texts)
            except RefedError as error:
                how = How.REFUSED if isinstance(error, InputError) else How.FAILED
                return Ended(how, one_line(_told(error), 600), self.warned.texts)
            return Ended(How.DONE, warned=self.warned.texts)

    async def _work_on_leases(self) -> None:
        while True:
            lease = await self.coordinator.ask("take", self.name)
            if lease is not None:
                if not await self._work_or_leave(lease):
                    return
            elif await self.coordinator.ask("finished", self.name):
                return
            else:
                await asyncio.sleep(EVERY)

    async def _work_or_leave(self, lease: Lease) -> bool:
        """`_work`. What it raises may be the shard's fault, which the next worker therefore does not take first. It is
        nobody's where the lease went to another worker, as where this one was frozen."""
        try:
            return await self._work(lease)
        except CoordinatorLost:
            raise
        except RefedError:
            if not await self._put_off(lease):
                return False
            raise

    async def _work(self, lease: Lease) -> bool:
        """Whether the worker goes on after this lease: not where it has lost it, or the run ends.

        It then leaves the lease as it is, and so it does after an error: whoever takes the shard next looks what it
        has. To give it back would say that it has come as far as it could.
        """
        try:
            work = self._opened(lease)
        except FolderInUse:  # its last worker may be frozen
            await self._put_off(lease)
            await asyncio.sleep(EVERY)
            return True
        told, task = await self._report(lease, work.before, None), asyncio.ensure_future(work.run())
        try:
            while told is Reply.GO_ON and not (await asyncio.wait([task], timeout=REPORTED))[0]:
                told = await self._report(lease, work.now(), work.progress)
        finally:
            task.cancel()  # which does nothing where it has ended
            await asyncio.wait([task])
        if told is not Reply.GO_ON:
            return False
        done = task.result()
        if done.error is not None:
            return await self._leave(lease, work.before, done, done.error)
        return await self._give_back(lease, done)

    def _opened(self, lease: Lease) -> ShardRun:
        """The work on a lease, by what the shard's folder says. Raises FolderInUse, and as what it opens."""
        folder = shard_folder(self.run_dir, lease.shard)
        with Ledger.create(folder) as ledger:
            take_over(folder, lease.epoch)  # not before the lock is held: who has it may still have answers to write
            return ShardRun(ledger, lease, Claims(self.coordinator, lease.shard))

    async def _give_back(self, lease: Lease, done: Done) -> bool:
        return bool(await self.coordinator.ask("give_back", self.name, lease.shard, lease.epoch, done.used, done.dry))

    async def _leave(self, lease: Lease, before: Amounts, done: Done, error: RefedError) -> bool:
        """Leave a shard that gives nothing: others make up for it. One whose calls failed is put off, perhaps for a
        worker whose teacher answers, and gives nothing more once they fail again.

        Raises `error` where it is not this shard alone: LEAST_CALLS calls were in vain since anything was kept. Those
        of a shard that an earlier start left so, and that was not paid for again, count only in a run without samples.
        """
        await self._report(lease, done.used, None)
        totals: Totals = await self.coordinator.ask("totals")
        if totals.kept != self.kept:
            self.kept, self.in_vain = totals.kept, 0
        again = lease.shard in self.failed
        if not again and (done.used.calls > before.calls or not totals.kept):
            self.in_vain += done.in_vain
        if self.in_vain >= LEAST_CALLS:
            raise error
        if not isinstance(error, NothingKept) and not again:
            self.failed.add(lease.shard)
            await self._put_off(lease)
            return True
        why = error.why if isinstance(error, NothingKept) else _told(error)
        log.warning("shard %d gives nothing more in this start: %s", lease.shard, why)
        return await self._give_back(lease, done)

    async def _put_off(self, lease: Lease) -> bool:
        return bool(await self.coordinator.ask("put_off", self.name, lease.shard, lease.epoch))

    async def _report(self, lease: Lease, used: Amounts, progress: Progress | None) -> Reply:
        told: dict[str, Any] = {"warned": self.warned.texts, PID: os.getpid()}
        if progress is not None:
            told["in_flight"] = progress.in_flight
        return Reply(await self.coordinator.ask("report", self.name, lease.shard, lease.epoch, used, told))


def _told(error: RefedError) -> RefedError:
    """What is told of an error that ended a lease: not how the shard goes on."""
    return error.__cause__ if isinstance(error.__cause__, RefedError) else error


def work(run: str, mark: str, name: str, coordinator: Any) -> Ended:
    """The task of Ray that is a worker. `mark`: what the driver wrote into the run's folder."""
    folder = Path(run)
    if not _is_shared(folder, mark):
        why = "does not see this folder; choose one on a file system that all nodes share"
        return Ended(How.UNSHARED, f"{folder}: {why}")
    return asyncio.run(Worker(folder, name, CoordinatorActor(coordinator, LOST)).run())


def _is_shared(folder: Path, mark: str) -> bool:
    try:
        return (folder / MARK).read_text(encoding="utf-8").strip() == mark
    except (OSError, UnicodeDecodeError):
        return False
