"""One lease of one shard: ordinary paid work in the shard's folder, up to what the lease allows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import CapTooSmall, NothingKept, RefedError, RunStopped, TeacherError, TooManyFailed
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.plugins.cluster.account import Amounts
from refed_dspy.plugins.cluster.leases import Lease
from refed_dspy.records import PICO
from refed_dspy.teachers.caps import CapSettings
from refed_dspy.teachers.failures import LEAST_CALLS
from refed_dspy.teachers.progress import Progress
from refed_dspy.teachers.session import Session
from refed_dspy.teachers.work import Work, begin

HERE = ("localhost", "127.0.0.1", "::1")
"""Hosts of a teacher that each node has for itself."""


class Done(NamedTuple):
    """What came of a lease: what the shard has used, over all its starts. `dry`: it gives nothing more.

    `in_vain`: how many of the calls count as such that together say that it is not this shard that is at fault;
    `error`: what work in one process would end with.
    """

    used: Amounts
    dry: bool = False
    in_vain: int = 0
    error: RefedError | None = None


class ShardWork(ABC):
    """The `work` on one lease of a shard, whose `ledger` is open while this is made, and only then."""

    def __init__(self, ledger: Ledger, lease: Lease, work: Work, kept: int) -> None:
        self.folder, self.work = ledger.path.parent, replace(work, epoch=lease.epoch)
        self.before = _used(ledger, kept)
        """What the shard has before it."""
        self.progress: Progress | None = None
        """How far it is; None before its first call."""

    async def run(self) -> Done:
        """Work until the lease is used up or the shard is dry. Raises as `Session.running`; when cancelled, calls in
        flight get a moment to be committed."""
        try:
            return await self._work()
        except CapTooSmall:  # for a single call: nothing was begun
            return Done(self.before)

    async def _work(self) -> Done:
        with begin(self.folder, self.work) as start:
            session = Session(start)
            self.progress = session.progress
            error, in_vain = None, 0
            try:
                await self.carry_out(session)
            except (RunStopped, TeacherError) as stopped:
                if not 0 < (in_vain := _in_vain(session, stopped)) < LEAST_CALLS:
                    raise
                error = stopped
            dry = session.cap_reached is None and self.is_dry(session)
            return Done(_used(start.ledger, self.kept(session)), dry, in_vain, error)

    @abstractmethod
    async def carry_out(self, session: Session) -> None:
        """Do what is left, as far as the caps allow."""

    @abstractmethod
    def kept(self, session: Session) -> int:
        """How many samples, or judged rows, the shard has now."""

    @abstractmethod
    def is_dry(self, session: Session) -> bool:
        """Whether the shard gives nothing more, where no cap ended the lease."""

    def now(self) -> Amounts:
        """What the shard has so far, while it is worked on."""
        if (progress := self.progress) is None:
            return self.before
        return Amounts(progress.kept, progress.picodollars, self.before.calls + progress.calls)


def _in_vain(session: Session, error: RefedError) -> int:
    """How many calls were in vain before this `error` ended the work; 0: it concerns other shards, too. Where the shard
    may be at fault, half of what ends the worker: the next shard tells."""
    if isinstance(error, NothingKept) or isinstance(error.__cause__, TooManyFailed):
        return LEAST_CALLS // 2
    return session.unanswered


def _used(ledger: Ledger, kept: int) -> Amounts:
    """What a shard has used, which has so much."""
    so_far = spent(ledger)
    return Amounts(kept, so_far.picodollars, so_far.calls)


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
