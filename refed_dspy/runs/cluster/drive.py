"""A run on a cluster, from its beginning to its end: the shards are made, workers work, what they made is gathered."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from refed_dspy.config.run import RunConfig
from refed_dspy.errors import CapReached, ConfigError, InputError, RunDirError, RunStopped
from refed_dspy.files import write_text
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.connection import FILE, is_at_work
from refed_dspy.ledger.identity import has_begun
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import text_digest
from refed_dspy.ledger.states import CAPPED, DONE, SHORT, End, write_end
from refed_dspy.ledger.summary import decisions_by_filter
from refed_dspy.runs.cluster.coordinator import Coordinator, Totals
from refed_dspy.runs.cluster.coordinator_actor import CoordinatorActor
from refed_dspy.runs.cluster.coordinator_file import CoordinatorFile
from refed_dspy.runs.cluster.crew import Crew
from refed_dspy.runs.cluster.gather import gather
from refed_dspy.runs.cluster.ray_cluster import connected
from refed_dspy.runs.cluster.shards import number_of_shards, prepare_shard, shard_folder, shard_of
from refed_dspy.runs.cluster.watching import Watching
from refed_dspy.runs.cluster.worker import EVERY, LOST, MARK
from refed_dspy.runs.result import Synthesis, end_at_cap, read_run, refresh_samples, why_short
from refed_dspy.runs.resume import remembered
from refed_dspy.runs.spec import RunSpec
from refed_dspy.runs.synthesize import TRACKING_INTERVAL
from refed_dspy.teachers.caps import CapSettings
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.teachers.work import Start, Work, begin
from refed_dspy.tracking.background import run_wanted, tracking
from refed_dspy.tracking.run import copy_run

STATE = "coordinator.sqlite"
PATIENCE = 300.0
"""Seconds in which a coordinator that begins again has read its file. Workers are lost sooner, and then replaced."""
log = logging.getLogger("refed_dspy.cluster")
REFERENCES = -1
"""The shard that no worker has: what is claimed for it is nobody's."""


async def drive(spec: RunSpec, watch: Watch[Progress]) -> Synthesis:
    """Continue the run in its folder on the cluster that its settings name, until its size is reached.

    Raises:
        ConfigError: no such cluster, or it cannot be used; fewer references than shards; a program or model that only a
            script can build.
        RunDirError: the folder holds another run, or one without a cluster; or no node sees it.
        RunStopped: every worker ended with an error; the last one's is told. What was made is gathered.
    """
    config = spec.config
    assert isinstance(config, RunConfig) and config.cluster is not None
    folder = spec.folder
    shards = number_of_shards(config.shards or _shards_before(folder), len(spec.references))
    work = replace(spec.work(), identity={**spec.identity(), "shards": shards})
    _refuse_objects(work)
    if (folder / FILE).is_file():
        with Ledger.read(folder) as ledger:  # before Ray is asked for, which takes a while
            work.refuse_another(ledger)
    with tracking(folder, copy_run, run_wanted(config.track, folder), TRACKING_INTERVAL) as tracker:
        with connected(config.cluster) as ray, _gathered(folder, shards, work), begin(folder, work) as start:
            end = await _one_start(spec, shards, start, ray, watch)
            _note_time(start.ledger)
        _tell(folder, end, work)
        await tracker.told()
    refresh_samples(folder)
    return read_run(folder)


def _refuse_objects(work: Work) -> None:
    """Raises ConfigError where a worker could not build the run from what its folder remembers."""
    with tempfile.TemporaryDirectory() as home, Ledger.create(Path(home)) as ledger:
        work.record(ledger, CapSettings(max_cost=None, max_calls=None, max_minutes=None))
        try:
            remembered(ledger)
        except RunDirError as error:
            why = str(error).removeprefix(f"{home}: ").partition(";")[0]
            raise ConfigError(
                f"cluster: {why}; workers on other nodes build a run from its settings: name its program, teachers, "
                "judge and filters there"
            ) from None


@contextmanager
def _gathered(folder: Path, shards: int, work: Work) -> Iterator[None]:
    """After the block, however it ends, what the shards have is in the run's ledger. A RunStopped of the block, and an
    interruption, then say what is kept, and how to go on."""
    folders = [shard_folder(folder, number) for number in range(shards)]
    try:
        yield
    except InputError:  # nothing was made
        raise
    except BaseException as error:
        try:
            gather(folder, folders)
        except (RunDirError, RunStopped) as why:  # a frozen worker still has the files, say: the next start gathers
            log.warning("what was made is kept in the shards, and not yet gathered: %s", why)
            raise error from None
        with Ledger.read(folder) as ledger:
            if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
                raise type(error)(work.kept_line(ledger)) from None
            if type(error) is RunStopped:
                raise RunStopped(f"{error}; {work.resume_hint(ledger)}") from None
        raise
    gather(folder, folders)


async def _one_start(spec: RunSpec, shards: int, start: Start, ray: Any, watch: Watch[Progress]) -> End | CapReached:
    """Have workers work until nothing is left to do. How it ended."""
    folder = spec.folder
    await _let_go(folder, shards)
    for number in range(shards):
        prepare_shard(shard_of(spec, number, shards))
    mark = uuid.uuid4().hex
    write_text(folder / MARK, [mark])
    caps, seconds = start.caps_left.caps, start.caps_left.seconds
    with closing(CoordinatorFile(folder / STATE, shards)):  # raises here what the actor could only die of
        pass
    coordinator = CoordinatorActor(_actor(ray, folder / STATE, shards, start, spec), PATIENCE)
    priced = all(model.price is not None for model in spec.models.values())
    progress = Progress(start.size, start.ledger.kept(), priced=priced)
    await coordinator.ask("claim", REFERENCES, [text_digest(each.instruction) for each in spec.references])
    crew = Crew(ray, folder, mark, coordinator, Watching(folder, progress))
    async with watch.following(progress):
        try:
            async with asyncio.timeout(seconds):
                await crew.run()
        except TimeoutError:
            await crew.stop()
            return CapReached("max_minutes")
        except BaseException:
            await crew.stop()
            raise
    totals: Totals = await coordinator.ask("totals")
    if totals.kept >= start.size:
        return End(DONE)
    if totals.dry == shards or caps == Caps():
        return End(SHORT)
    return CapReached("max_cost" if caps.max_cost is not None else "max_calls")


async def _let_go(folder: Path, shards: int) -> None:
    """Give the workers of a driver that was killed the time to end: they notice it, or have lost the coordinator."""
    until = time.monotonic() + LOST + 10
    for number in range(shards):
        while is_at_work(shard_folder(folder, number)) and time.monotonic() < until:  # noqa: ASYNC110 — another process
            await asyncio.sleep(EVERY)


def _actor(ray: Any, path: Path, shards: int, start: Start, spec: RunSpec) -> Any:
    """The coordinator: beside the driver, where it may be, and begun anew wherever it dies."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node_id=ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    caps = start.caps_left.caps
    return ray.remote(Coordinator).options(**options).remote(
        str(path.absolute()),
        shards=shards,
        size=start.size,
        job=uuid.uuid4().hex,
        max_cost=caps.max_cost,
        max_calls=caps.max_calls,
        least=max((model.least or 0 for model in spec.models.values()), default=0) or None,
    )  # fmt: skip


def _shards_before(folder: Path) -> int | None:
    """How many shards the run in `folder` has; None where there is no run yet. Raises RunDirError where it has none."""
    if not (folder / FILE).is_file():
        return None
    with Ledger.read(folder) as ledger:
        shards: int | None = (ledger.meta("identity") or {}).get("shards")
        if shards is None and ledger.holds() == "run" and has_begun(ledger):
            raise RunDirError(
                f"{folder}: a run without a cluster; continue it without one, or choose another folder: "
                f"reuse={str(folder)!r} takes over what was paid for"
            )
    return shards


def _note_time(ledger: Ledger) -> None:
    """Count the time until now as time of work."""
    now = time.time()
    ledger.commit([("UPDATE starts SET last = ? WHERE begun = (SELECT max(begun) FROM starts)", (now,))])


def _tell(folder: Path, end: End | CapReached, work: Work) -> None:
    """Write how the start ended, now that all is gathered."""
    with Ledger.create(folder) as ledger:
        if isinstance(end, CapReached):
            end = End(CAPPED, end_at_cap(folder, end, partial(work.go_on, ledger)))
        elif end.state == SHORT:
            dropped = sum(counts["dropped"] for counts in decisions_by_filter(ledger))
            why = why_short(ledger.failures(), dropped)
            end = End(SHORT, f"the references gave {ledger.kept()} of {ledger.meta('size')} samples: {why}")
        write_end(ledger, end)
