"""A run on a cluster, from its beginning to its end: the shards are made, workers work, what they made is gathered."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from refed_dspy.config.keys import is_held
from refed_dspy.errors import CapReached, ConfigError, InputError, RunDirError, RunStopped, setting_text
from refed_dspy.files import write_text
from refed_dspy.jobs.job import job
from refed_dspy.jobs.work import NO_CAPS, Start, Work
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.connection import FILE, is_at_work, locked
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import text_digest
from refed_dspy.ledger.states import CAPPED, DONE, SHORT, STOPPED, UNGATHERED, End, has_begun, write_end
from refed_dspy.ledger.summary import decisions_by_filter
from refed_dspy.plugins.cluster.coordinator import Coordinator, CoordinatorActor, CoordinatorFile, Totals
from refed_dspy.plugins.cluster.crew import Crew, Watching
from refed_dspy.plugins.cluster.gather import gather
from refed_dspy.plugins.cluster.ray_cluster import beside_driver, connected
from refed_dspy.plugins.cluster.shards import number_of_shards, prepare_shard, shard_folder, shard_of
from refed_dspy.plugins.cluster.worker import EVERY, LOST, MARK
from refed_dspy.runs.remembered import NeedsScript, remembered
from refed_dspy.runs.result import Synthesis, drop_samples, end_at_cap, read_run, why_short
from refed_dspy.runs.spec import RunSpec, outlook
from refed_dspy.runs.synthesize import TRACKING_INTERVAL
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.tracking.background import run_wanted, tracking
from refed_dspy.tracking.run import copy_run

STATE = "coordinator.sqlite"
PATIENCE = 300.0
"""Seconds in which a coordinator that begins again has read its file. Workers are lost sooner, and then replaced."""
NOT_YET = "what the workers made is not gathered yet; run the same command to continue"
"""Why a start is not at its end whose workers are."""
NOBODY = -1
"""The shard that no worker has: what is claimed for it is nobody's."""
log = logging.getLogger("refed_dspy.cluster")


@dataclass(frozen=True)
class ClusterJob:
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


def refuse_objects(work: Work) -> None:
    """Raises ConfigError where a worker could not build the run from what a folder records of `work`."""
    for role, model in work.models.items():
        if model.config is not None and is_held(name := model.config.api_key_env):
            raise ConfigError(f"cluster: the {role}'s key is in this process alone; set {name} on each node")
    with tempfile.TemporaryDirectory() as home, Ledger.create(Path(home)) as ledger:
        work.record(ledger, NO_CAPS)
        try:
            remembered(ledger)
        except NeedsScript as error:
            raise ConfigError(
                f"cluster: {error.what}; workers on other nodes build everything from settings: name programs, models "
                "and filters there"
            ) from None


@contextmanager
def gathered(folder: Path, gather: Callable[[], object], work: Work) -> Iterator[Start]:
    """One more start of `work` in `folder`, as `job`. After the block, however it ends, what the shards have is in the
    folder's ledger, by `gather`. A RunStopped of the block, and an interruption, then say what is kept, and how to
    go on; and an InputError becomes a RunStopped where something was paid for. Where the block ends well, how the start
    ended is still to be written afterwards."""
    start, paid = None, None
    try:
        with job(folder, work) as at:
            start = at.begin()
            paid = _paid(start.ledger)
            yield start
            _note_time(start.ledger)
            at.ends(End(STOPPED, NOT_YET))
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
                raise RunStopped(str(error) + "; " + work.resume_hint(ledger)) from None
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


async def drive(spec: RunSpec, watch: Watch[Progress]) -> Synthesis:
    """Continue the run in its folder on the cluster that its settings name, until its size is reached.

    Raises:
        ConfigError: no such cluster, or it cannot be used; fewer references than shards; a program or model that only a
            script can build.
        RunDirError: the folder holds another run, or one without a cluster; or no node sees it; or a start that was
            killed left what cannot be gathered.
        RunStopped: every worker ended with an error; the last one's is told. What was made is gathered. An InputError
            where the last one could not use what it was given, and nothing was paid for.
    """
    config = spec.config
    assert config.cluster is not None
    folder = spec.folder
    shards = number_of_shards(config.shards or _shards_before(folder), len(spec.references))
    refuse_objects(spec.work())
    await _gather_left(folder)
    spec = spec.as_begun()
    work = replace(spec.work(), identity={**spec.identity(), "shards": shards})
    if (folder / FILE).is_file():
        with Ledger.read(folder) as ledger:  # before Ray is asked for, which takes a while
            work.refuse_another(ledger)
    folders = [shard_folder(folder, number) for number in range(shards)]
    _refuse_lost_coordinator(folder, folders)
    with tracking(folder, copy_run, run_wanted(config.track, folder), TRACKING_INTERVAL) as tracker:
        with connected(config.cluster) as ray, gathered(folder, partial(gather, folder, folders), work) as start:
            end = await _one_start(spec, shards, start, ray, watch)
        _tell(folder, end, work)
        await tracker.told()
    return read_run(folder)


async def _gather_left(folder: Path) -> None:
    """Gather what a start left in `folder` that was killed. Until then the run's own ledger knows of none of its
    answers, and so neither that it has begun, with these settings and under these caps, nor how long it worked.

    Raises as `let_go` and `gather`.
    """
    if not (folder / FILE).is_file():
        return
    with Ledger.read(folder) as ledger:
        if not ledger.meta(UNGATHERED):
            return
        shards = range(ledger.meta("identity")["shards"])
    folders = [shard_folder(folder, number) for number in shards]
    await let_go(folder, folders)
    gather(folder, folders)


def _refuse_lost_coordinator(folder: Path, shards: Sequence[Path]) -> None:
    """Raises RunDirError where the shards have calls, and the file is gone that says what each may still use."""
    if (folder / STATE).is_file():
        return
    for shard in shards:
        if (shard / FILE).is_file():
            with Ledger.create(shard) as ledger:
                if ledger.last_call():
                    raise RunDirError(
                        f"{folder / STATE}: is missing, and with it what each shard may still use; restore it, or "
                        "choose another folder: " + setting_text("reuse", str(folder)) + " takes over what was paid for"
                    )


async def _one_start(spec: RunSpec, shards: int, start: Start, ray: Any, watch: Watch[Progress]) -> End | CapReached:
    """Have workers work until nothing is left to do. How it ended."""
    folder = spec.folder
    for number in range(shards):
        part = shard_of(spec, number, shards)
        prepare_shard(part.folder, part.work())
    on_shards = ClusterJob(folder, shards, start.size, start.caps_left.caps, spec.models)
    priced = all(model.price is not None for model in spec.models.values())
    progress = Progress(start.size, start.ledger.kept(), priced=priced)
    if not progress.kept:
        progress.outlook = outlook(spec, spec.plan_settings(start.size).to_come(), start.recorder.budget)
    barred = [text_digest(each.instruction) for each in spec.references]
    start.ledger.db.execute("PRAGMA synchronous=FULL")  # on the disk before anything is paid for
    start.ledger.set_meta(**{UNGATHERED: True})
    async with watch.following(progress):
        try:
            totals = await on_shards.carry_out(ray, Watching(folder, progress), start.caps_left.seconds, barred)
        except CapReached as reached:
            return reached
    if totals.kept >= start.size:
        return End(DONE)
    return on_shards.cap_of(totals) or End(SHORT)


def _shards_before(folder: Path) -> int | None:
    """How many shards the run in `folder` has; None where there is no run yet. Raises RunDirError where it has none."""
    if not (folder / FILE).is_file():
        return None
    with Ledger.read(folder) as ledger:
        shards: int | None = (ledger.meta("identity") or {}).get("shards")
        if shards is None and ledger.holds() == "run" and has_begun(ledger):
            way_out = "choose another folder: " + setting_text("reuse", str(folder)) + " takes over what was paid for"
            raise RunDirError(f"{folder}: a run without a cluster; continue it without one, or " + way_out)
    return shards


def _tell(folder: Path, end: End | CapReached, work: Work) -> None:
    """Write how the start ended, now that all is gathered."""
    with Ledger.create(folder) as ledger:
        if isinstance(end, CapReached):
            end = end_at_cap(folder, end, partial(work.go_on, ledger))
        elif end.state == SHORT:
            dropped = sum(counts["dropped"] for counts in decisions_by_filter(ledger))
            why = why_short(ledger.failures(), dropped)
            end = End(SHORT, f"the references gave {ledger.kept()} of {ledger.meta('size')} samples: {why}")
        if end.state != CAPPED:
            drop_samples(folder)
        write_end(ledger, end)
