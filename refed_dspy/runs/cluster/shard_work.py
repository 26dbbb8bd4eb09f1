"""One lease of one shard: an ordinary run in the shard's folder, up to what the lease allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import CapTooSmall, RefedError, RunStopped, TeacherError
from refed_dspy.ledger.fence import take_over
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.records import PICO
from refed_dspy.runs.cluster.account import Amounts
from refed_dspy.runs.cluster.leases import Lease
from refed_dspy.runs.prepare import prepare
from refed_dspy.runs.resume import remembered
from refed_dspy.runs.spec import Claim, RunSpec
from refed_dspy.runs.synthesize import carry_out, restored
from refed_dspy.teachers.failures import LEAST_CALLS
from refed_dspy.teachers.progress import Progress
from refed_dspy.teachers.session import Session
from refed_dspy.teachers.work import begin

HERE = ("localhost", "127.0.0.1", "::1")
"""Hosts of a teacher that each node has for itself."""


class Done(NamedTuple):
    """What came of a lease: what the shard has used, over all its starts. `dry`: its references give nothing more.

    `unanswered`: how many calls failed where all did, fewer than it takes to say that the teacher is at fault; `error`:
    what a run in one process would end with.
    """

    used: Amounts
    dry: bool = False
    unanswered: int = 0
    error: RefedError | None = None


class ShardWork:
    """The work on one lease. `workers`: how many share what a teacher away from the nodes allows a minute."""

    def __init__(self, folder: Path, lease: Lease, workers: int, claim: Claim) -> None:
        self.folder, self.lease = folder, lease
        self.progress: Progress | None = None
        """How far it is; None before its first call."""
        with Ledger.create(folder) as ledger:
            take_over(folder, lease.epoch)  # not before the lock is held: who has it may still have answers to write
            program, references, settings = remembered(ledger)
            self.before = _used(ledger)
            self._facts = {name: ledger.meta(name) for name in ("teacher", "pools", "judge")}
            """As the driver recorded them: with all of what a teacher allows a minute."""
        for role in ("teacher", "judge"):
            settings[role] = _shared(settings[role], workers)
        settings["teachers"] = {stage: _shared(pool, workers) for stage, pool in settings["teachers"].items()}
        caps = {
            "max_cost": math.inf if lease.max_cost is None else lease.max_cost / PICO,
            "max_calls": math.inf if lease.max_calls is None else lease.max_calls,
            "max_minutes": math.inf,
        }
        settings |= {**caps, "size": max(1, lease.size), "track": False, "run_dir": folder}
        self.spec: RunSpec = replace(prepare(program, references, **settings), claim=claim)

    async def run(self) -> Done:
        """Work until the lease is used up or the shard is dry. Raises as `synthesize`; when cancelled, calls in flight
        get a moment to be committed."""
        if self.lease.size <= self.before.kept:
            return Done(self.before)
        try:
            return await self._work()
        except CapTooSmall:  # for a single call: nothing was begun
            return Done(self.before)

    async def _work(self) -> Done:
        work = self.spec.work()
        with begin(self.folder, replace(work, facts={**work.facts, **self._facts})) as start:
            plan, session = restored(start.ledger, self.spec.plan_settings(start.size)), Session(start)
            self.progress = session.progress
            error, unanswered = None, 0
            try:
                await carry_out(self.spec, session, plan)
            except (RunStopped, TeacherError) as stopped:
                if not 0 < (unanswered := session.unanswered) < LEAST_CALLS:
                    raise
                error = stopped
            dry = not plan.complete and session.cap_reached is None
            return Done(_used(start.ledger), dry, unanswered, error)

    def now(self) -> Amounts:
        """What the shard has so far, while it is worked on."""
        if (progress := self.progress) is None:
            return self.before
        return Amounts(progress.kept, progress.picodollars, self.before.calls + progress.calls)


def _used(ledger: Ledger) -> Amounts:
    so_far = spent(ledger)
    return Amounts(ledger.kept(), so_far.picodollars, so_far.calls)


def _shared(models: Any, workers: int) -> Any:
    """These teachers, or this judge, with a worker's share of what they allow a minute."""
    if isinstance(models, list):
        return [_shared(model, workers) for model in models]
    if not isinstance(models, TeacherConfig) or _is_here(models):
        return models
    limits = {name: getattr(models, name) for name in ("requests_per_minute", "tokens_per_minute")}
    return models.model_copy(update={name: most / workers for name, most in limits.items() if most is not None})


def _is_here(model: TeacherConfig) -> bool:
    """Whether each node has this teacher for itself."""
    addresses: Sequence[str | None] = model.api_base if isinstance(model.api_base, list) else [model.api_base]
    return model.without_endpoint or all(address and urlsplit(address).hostname in HERE for address in addresses)
