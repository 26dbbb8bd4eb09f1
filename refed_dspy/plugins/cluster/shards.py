"""The shards of a run, and the work on one lease of one: each is an ordinary run folder about its share of the
references, fixed for the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.data.references import References
from refed_dspy.errors import CapTooSmall, ConfigError, NothingKept, RefedError, RunStopped, TeacherError, TooManyFailed
from refed_dspy.jobs.job import job
from refed_dspy.jobs.session import Session
from refed_dspy.jobs.work import NO_CAPS, CapSettings, Work
from refed_dspy.ledger.connection import SHARDS, Fence, take_over
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.plugins.cluster.leases import Amounts, Lease
from refed_dspy.records import PICO
from refed_dspy.runs.remembered import remembered
from refed_dspy.runs.spec import Claim, RunSpec, prepare
from refed_dspy.runs.synthesize import make_samples, restored
from refed_dspy.teachers.failures import LEAST_CALLS
from refed_dspy.teachers.progress import Progress

USUAL = 64
"""Shards of a run, unless it is told another number or has few references."""
FEWEST = 4
"""References of a shard, unless a run is told how many shards it has: with fewer, a shard is soon dry."""
HERE = ("localhost", "127.0.0.1", "::1")
"""Hosts of a teacher that each node has for itself."""
HOPELESS = LEAST_CALLS // 2
"""The calls in vain that a shard counts as whose run ends for itself: the second in a row ends the worker, too."""


def shard_folder(run: Path, number: int) -> Path:
    """The folder of one shard of the run in `run`."""
    return run / SHARDS / f"{number:03}"


def number_of_shards(asked: int | None, references: int) -> int:
    """How many shards a new run has. Raises ConfigError where there are fewer references."""
    if asked is None:
        return max(1, min(USUAL, references // FEWEST))
    if asked > references:
        raise ConfigError(f"shards: {asked} shards of {references} references; use at most {references}")
    return asked


def shard_of(spec: RunSpec, number: int, shards: int) -> RunSpec:
    """The part of the run that one shard is: every `shards`-th reference."""
    config = spec.config.model_copy(update={"run_dir": shard_folder(spec.folder, number), "track": False})
    mine = References(spec.references.items[number::shards])
    return replace(spec, config=config, references=mine)


def prepare_shard(folder: Path, work: Work) -> None:
    """Make a shard's folder, or bring its settings up to date: a worker needs nothing but the folder.

    Raises RunDirError: it is in use, or belongs to another run.
    """
    if Fence.of(folder) is None:
        take_over(folder, 0)
    with Ledger.create(folder) as ledger:
        work.refuse_another(ledger)
        work.record(ledger, NO_CAPS)


class Done(NamedTuple):
    """What came of a lease: what the shard has used, over all its starts. `dry`: it gives nothing more. `error`: what
    a run in one process would end with, and what may be this shard's own fault; `in_vain`: how many calls say so."""

    used: Amounts
    dry: bool = False
    error: RefedError | None = None
    in_vain: int = 0


class ShardRun:
    """The work on one `lease` of a shard, an ordinary run in the shard's folder, with its share of what a teacher away
    from the nodes allows a minute. Its `ledger` is open while this is made, and only then."""

    def __init__(self, ledger: Ledger, lease: Lease, claim: Claim) -> None:
        program, references, settings = remembered(ledger)
        # As the driver recorded them: with all of what a teacher allows a minute.
        facts = {"settings": ledger.meta("settings")}
        for role in ("teacher", "judge"):
            settings[role] = shared(settings[role], lease.workers)
        settings["teachers"] = {stage: shared(pool, lease.workers) for stage, pool in settings["teachers"].items()}
        self.folder, self.lease = ledger.path.parent, lease
        settings |= {**caps_of(lease), "size": max(1, lease.size), "track": False, "run_dir": self.folder}
        self.spec: RunSpec = replace(prepare(program, references, **settings), claim=claim)
        work = self.spec.work()
        self.work = replace(work, epoch=lease.epoch, facts={**work.facts, **facts})
        self.before = _used(ledger)
        """What the shard has before it."""
        self.progress: Progress | None = None
        """How far it is; None before its first call."""

    async def run(self) -> Done:
        """Work until the lease is used up or the shard is dry. Raises as `Session.running`; when cancelled, calls in
        flight get a moment to be committed."""
        if self.lease.size <= self.before.kept:
            return Done(self.before)
        try:
            return await self._work()
        except CapTooSmall:  # for a single call: nothing was begun
            return Done(self.before)

    async def _work(self) -> Done:
        with job(self.folder, self.work) as at:
            start = at.begin()
            session = Session(start)
            self.progress = session.progress
            try:
                await make_samples(self.spec, session, restored(start.ledger, self.spec.plan_settings(start.size)))
            except (RunStopped, TeacherError) as stopped:
                hopeless = isinstance(stopped, NothingKept) or isinstance(stopped.__cause__, TooManyFailed)
                if not 0 < (in_vain := HOPELESS if hopeless else session.unanswered) < LEAST_CALLS:
                    raise
                return Done(_used(start.ledger), True, stopped, in_vain)
            dry = session.cap_reached is None and start.ledger.kept() < start.size
            return Done(_used(start.ledger), dry)

    def now(self) -> Amounts:
        """What the shard has so far, while it is worked on."""
        if (progress := self.progress) is None:
            return self.before
        return Amounts(progress.kept, progress.picodollars, self.before.calls + progress.calls)


def _used(ledger: Ledger) -> Amounts:
    """What a shard has used."""
    so_far = spent(ledger)
    return Amounts(ledger.kept(), so_far.picodollars, so_far.calls)


def caps_of(lease: Lease) -> CapSettings:
    """The caps of a lease, for a start; none of those that an earlier one set."""
    max_cost = math.inf if lease.max_cost is None else lease.max_cost / PICO
    max_calls: Any = math.inf if lease.max_calls is None else lease.max_calls
    return CapSettings(max_cost=max_cost, max_calls=max_calls, max_minutes=math.inf)


def shared(models: Any, workers: int) -> Any:
    """These teachers, or this judge, with a worker's share of what they allow a minute."""
    if isinstance(models, list):
        return [shared(model, workers) for model in models]
    if not isinstance(models, TeacherConfig) or _is_here(models):
        return models
    limits = {name: getattr(models, name) for name in ("requests_per_minute", "tokens_per_minute")}
    return models.model_copy(update={name: most / workers for name, most in limits.items() if most is not None})


def _is_here(model: TeacherConfig) -> bool:
    """Whether each node has this teacher for itself."""
    addresses: Sequence[str | None] = model.api_base if isinstance(model.api_base, list) else [model.api_base]
    return model.without_endpoint or all(address and urlsplit(address).hostname in HERE for address in addresses)
