"""One start's work on the shards of a folder, a run's or a filtering's: the coordinator begins, workers work and end,
what they made is gathered."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.errors import CapReached, ConfigError, InputError, RunDirError, RunStopped
from refed_dspy.files import write_text
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.connection import is_at_work, locked
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import STOPPED, End, write_end
from refed_dspy.plugins.cluster.coordinator import Coordinator, Totals
from refed_dspy.plugins.cluster.coordinator_actor import CoordinatorActor
from refed_dspy.plugins.cluster.coordinator_file import CoordinatorFile
from refed_dspy.plugins.cluster.crew import Crew
from refed_dspy.plugins.cluster.ray_cluster import beside_driver
from refed_dspy.plugins.cluster.watching import Watching
from refed_dspy.plugins.cluster.worker import EVERY, LOST, MARK
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.caps import NO_CAPS
from refed_dspy.teachers.work import Start, Work, begin

STATE = "coordinator.sqlite"
PATIENCE = 300.0
"""Seconds in which a coordinator that begins again has read its file. Workers are lost sooner, and then replaced."""
NOT_YET = "what the workers made is not gathered yet; run the same command to continue"
"""Why a start is not at its end whose workers are."""
NOBODY = -1
"""The shard that no worker has: what is claimed for it is nobody's."""
log = logging.getLogger("refed_dspy.cluster")


@dataclass(frozen=True)
class Job:
    """The shards in `folder`, which shall have `size` samples or rows together, under `caps`. `models`: role → model
    that they ask."""

    folder: Path
    shards: int
    size: int
    caps: Caps
    models: Mapping[str, Teacher]

    async def carry_out(
        self, ray: Any, watching: Watching, seconds: float | None, barred: Sequence[bytes] = ()
    ) -> Totals:
        """Have workers work until nothing is left to do. `barred`: digests of instructions that no shard may have.

        Raises CapReached after so many `seconds`; as `Crew.run`. The workers have ended then.
        """
        mark = uuid.uuid4().hex
        write_text(self.folder / MARK, [mark])
        with closing(CoordinatorFile(self.folder / STATE, self.shards)):  # raises here what the actor could only die of
            pass
        coordinator = CoordinatorActor(self._actor(ray), PATIENCE)
        if barred:
            await coordinator.ask("claim", NOBODY, barred)
        crew = Crew(ray, self.folder, mark, coordinator, watching)
        try:
            async with asyncio.timeout(seconds):
                await crew.run()
        except TimeoutError:
            await crew.stop()
            raise CapReached("max_minutes") from None
        except BaseException:
            await crew.stop()
            raise
        totals: Totals = await coordinator.ask("totals")
        return totals

    def cap_of(self, totals: Totals) -> CapReached | None:
        """The cap that ended the work, whose numbers are these; None where nothing more could be done."""
        if totals.kept >= self.size or totals.dry == self.shards or self.caps == Caps():
            return None
        calls = self.caps.max_calls
        by_calls = calls is not None and (self.caps.max_cost is None or totals.calls >= calls)
        return CapReached("max_calls" if by_calls else "max_cost")

    def _actor(self, ray: Any) -> Any:
        """The coordinator: beside the driver, where it may be, and begun anew wherever it dies."""
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, **beside_driver(ray)}
        return ray.remote(Coordinator).options(**options).remote(
            str((self.folder / STATE).absolute()),
            shards=self.shards,
            size=self.size,
            job=uuid.uuid4().hex,
            max_cost=self.caps.max_cost,
            max_calls=self.caps.max_calls,
            least=max((model.least or 0 for model in self.models.values()), default=0) or None,
        )  # fmt: skip


def refuse_objects(work: Work, remembered: Callable[[Ledger], object]) -> None:
    """Raises ConfigError where a worker could not build what `remembered` makes of a folder that records `work`."""
    with tempfile.TemporaryDirectory() as home, Ledger.create(Path(home)) as ledger:
        work.record(ledger, NO_CAPS)
        try:
            remembered(ledger)
        except RunDirError as error:
            why = str(error).removeprefix(f"{home}: ").partition(";")[0]
            raise ConfigError(
                f"cluster: {why}; workers on other nodes build everything from settings: name programs, models and "
                "filters there"
            ) from None


@contextmanager
def gathered(folder: Path, gather: Callable[[], object], work: Work) -> Iterator[Start]:
    """One more start of `work` in `folder`, as `begin`. After the block, however it ends, what the shards have is in
    the folder's ledger, by `gather`. A RunStopped of the block, and an interruption, then say what is kept, and how to
    go on; and an InputError becomes a RunStopped where something was paid for. Where the block ends well, how the start
    ended is still to be written afterwards."""
    start, paid = None, None
    try:
        with begin(folder, work) as start:
            paid = _paid(start.ledger)
            yield start
            _note_time(start.ledger)
            write_end(start.ledger, End(STOPPED, NOT_YET))
    except BaseException as error:
        if start is None:  # nothing was begun
            raise
        try:
            gather()
        except (RunDirError, RunStopped) as why:  # a frozen worker still has the files, say: the next start gathers
            log.warning("what was made is kept in the shards, and not yet gathered: %s", why)
            raise (RunStopped(str(error)) if isinstance(error, InputError) else error) from None  # perhaps paid
        with Ledger.read(folder) as ledger:
            if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
                raise type(error)(work.kept_line(ledger)) from None
            if type(error) is RunStopped or (isinstance(error, InputError) and _paid(ledger) != paid):
                raise RunStopped(f"{error}; {work.resume_hint(ledger)}") from None
        raise
    gather()


def _paid(ledger: Ledger) -> Any:
    """What was paid for so far, as in one process: calls with an answer, and tokens that others were billed for."""
    return ledger.db.execute("SELECT total(answered), total(prompt_tokens) FROM usage").fetchone()


async def let_go(folder: Path, shards: Iterable[Path]) -> None:
    """Give the workers of a driver that was killed in `folder` the time to end: they notice it, or have lost the
    coordinator. Raises FolderInUse where a driver is at work there."""
    until = time.monotonic() + LOST + 10
    with locked(folder):
        for shard in shards:
            while is_at_work(shard) and time.monotonic() < until:  # noqa: ASYNC110 — another process
                await asyncio.sleep(EVERY)


def _note_time(ledger: Ledger) -> None:
    """Count the time until now as time of work."""
    now = time.time()
    ledger.commit([("UPDATE starts SET last = ? WHERE begun = (SELECT max(begun) FROM starts)", (now,))])
