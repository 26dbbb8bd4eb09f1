"""A run on a cluster, from its beginning to its end: the shards are made, workers work, what they made is gathered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from refed_dspy.config.run import RunConfig
from refed_dspy.errors import CapReached, RunDirError
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import text_digest
from refed_dspy.ledger.states import CAPPED, DONE, SHORT, UNGATHERED, End, has_begun, write_end
from refed_dspy.ledger.summary import decisions_by_filter
from refed_dspy.plugins.cluster.gather import gather
from refed_dspy.plugins.cluster.job import STATE, Job, gathered, let_go, refuse_objects
from refed_dspy.plugins.cluster.ray_cluster import connected
from refed_dspy.plugins.cluster.shards import number_of_shards, prepare_shard, shard_folder, shard_of
from refed_dspy.plugins.cluster.watching import Watching
from refed_dspy.runs.outlook import outlook
from refed_dspy.runs.result import Synthesis, drop_samples, end_at_cap, read_run, why_short
from refed_dspy.runs.resume import remembered
from refed_dspy.runs.spec import RunSpec
from refed_dspy.runs.synthesize import TRACKING_INTERVAL
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.teachers.work import Start, Work
from refed_dspy.tracking.background import run_wanted, tracking
from refed_dspy.tracking.run import copy_run


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
    assert isinstance(config, RunConfig) and config.cluster is not None
    folder = spec.folder
    shards = number_of_shards(config.shards or _shards_before(folder), len(spec.references))
    refuse_objects(spec.work(), remembered)
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
                        f"choose another folder: reuse={str(folder)!r} takes over what was paid for"
                    )


async def _one_start(spec: RunSpec, shards: int, start: Start, ray: Any, watch: Watch[Progress]) -> End | CapReached:
    """Have workers work until nothing is left to do. How it ended."""
    folder = spec.folder
    for number in range(shards):
        part = shard_of(spec, number, shards)
        prepare_shard(part.folder, part.work())
    job = Job(folder, shards, start.size, start.caps_left.caps, spec.models)
    priced = all(model.price is not None for model in spec.models.values())
    progress = Progress(start.size, start.ledger.kept(), priced=priced)
    if not progress.kept:
        progress.outlook = outlook(spec, spec.plan_settings(start.size).to_come(), start.recorder.budget)
    barred = [text_digest(each.instruction) for each in spec.references]
    start.ledger.db.execute("PRAGMA synchronous=FULL")  # on the disk before anything is paid for
    start.ledger.set_meta(**{UNGATHERED: True})
    async with watch.following(progress):
        try:
            totals = await job.carry_out(ray, Watching(folder, progress), start.caps_left.seconds, barred)
        except CapReached as reached:
            return reached
    if totals.kept >= start.size:
        return End(DONE)
    return job.cap_of(totals) or End(SHORT)


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


def _tell(folder: Path, end: End | CapReached, work: Work) -> None:
    """Write how the start ended, now that all is gathered."""
    with Ledger.create(folder) as ledger:
        if isinstance(end, CapReached):
            end = End(CAPPED, end_at_cap(folder, end, partial(work.go_on, ledger)))
        elif end.state == SHORT:
            dropped = sum(counts["dropped"] for counts in decisions_by_filter(ledger))
            why = why_short(ledger.failures(), dropped)
            end = End(SHORT, f"the references gave {ledger.kept()} of {ledger.meta('size')} samples: {why}")
        if end.state != CAPPED:
            drop_samples(folder)
        write_end(ledger, end)
