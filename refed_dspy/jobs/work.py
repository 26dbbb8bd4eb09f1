"""What the paid work in a folder is: its identity, its models, and its caps with what is left of them. `job` opens the
folder for it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import shlex
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

from refed_dspy.concurrency import GRACE
from refed_dspy.config.base import Capped
from refed_dspy.errors import SAME_CALL, CapReached, CapTooSmall, ConfigError, RunDirError, Wording
from refed_dspy.ledger.batches import left_batches
from refed_dspy.ledger.budget import Budget, Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.ledger.states import differences, has_begun, named_work
from refed_dspy.records import PICO, Reference, dollars
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.pool import PoolSetup

log = logging.getLogger("refed_dspy.teachers")
TOO_SHORT = 0.1
"""Seconds: with less than this left, no work is begun."""


class CapSettings(TypedDict):
    """Caps over all starts of a run together; None: no bound."""

    max_cost: float | None
    max_calls: int | None
    max_minutes: float | None


NO_CAPS = CapSettings(max_cost=None, max_calls=None, max_minutes=None)


def caps_of(config: Capped) -> CapSettings:
    """The caps that a config sets."""
    return CapSettings(max_cost=config.max_cost, max_calls=config.max_calls, max_minutes=config.max_minutes)


@dataclass(frozen=True)
class CapsLeft:
    """The caps of a start, what earlier starts used of them, and the seconds that are left (None: no bound)."""

    caps: Caps
    before: Spent
    seconds: float | None
    settings: CapSettings = field(default_factory=lambda: NO_CAPS)
    """The caps as they are set, by this start or an earlier one."""

    @property
    def grace(self) -> float:
        """Seconds that calls in flight get to finish when the run must end."""
        return GRACE if self.seconds is None else min(GRACE, self.seconds / 2)

    @property
    def over(self) -> bool:
        """Whether too little time is left to begin anything."""
        return self.seconds is not None and self.seconds - self.grace < TOO_SHORT

    @asynccontextmanager
    async def minutes(self) -> AsyncIterator[None]:
        """End the work inside the block while just enough time is left to end it cleanly.

        Raises CapReached when the time ran out.
        """
        left = None if self.seconds is None else self.seconds - self.grace
        try:
            async with asyncio.timeout(left) as timer:
                yield
        except TimeoutError:
            if timer.expired():
                raise CapReached("max_minutes") from None
            raise


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a folder's paid work is, how its models are asked, and under which caps."""

    kind: str
    """What the folder is for, as the ledger says it: "run", "comparison", "filtering", …"""
    identity: Mapping[str, Any]
    """What may not change between starts. Its names appear in the message that refuses a change."""
    models: Mapping[str, Teacher]
    """Role → model. The first one answers, unless a stage asks for another role."""
    size: int
    """How many samples or rows there shall be."""
    caps: CapSettings
    """Over all starts. What is None stays as it was at the last start."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the ledger records besides: what may change between starts, so that the latest values are there."""
    references: Sequence[Reference] = ()
    """Recorded once, when the work is new."""
    reuse: Path | None = None
    """The folder of a run whose answers count here too."""
    policy: CallPolicy = field(default_factory=CallPolicy)
    calls_each: float = 2.0
    """About how many calls a sample or a row takes."""
    then: str = ""
    """What is left of the whole work once this is done."""
    traced: float = 0.01
    """The share of rows that MLflow gets a trace of, where its autolog is on."""
    unit: str = "rows"
    """What is counted, for people."""
    other: str = ""
    """What a folder with another identity holds, for the message; unset: another of this kind."""
    way_out: str = "choose another folder"
    most_changes: int | None = None
    """How many changes a refusal names; None: all."""
    epoch: int | None = None
    """The number of the lease of a shard under which it is done; None: without one."""

    @property
    def stored_identity(self) -> dict[str, Any]:
        """The identity as it is stored: keys are text, tuples are lists."""
        return dict(json.loads(json.dumps(dict(self.identity))))

    def changes(self, ledger: Ledger) -> list[str]:
        """How the identity differs from the one in the ledger, as one text for each difference."""
        return differences(ledger.meta("identity") or {}, self.stored_identity)

    def facts_at(self, ledger: Ledger) -> Mapping[str, Any]:  # noqa: ARG002
        """The facts to record at a start, which may build on what the ledger has."""
        return self.facts

    def pool_setup(self, ledger: Ledger) -> PoolSetup | None:  # noqa: ARG002
        """Who answers each stage; None: the first of the models alone."""
        return None

    def go_on(self, ledger: Ledger, change: str = "") -> Wording:  # noqa: ARG002
        """The call that continues the work, perhaps with a `change` of a setting."""
        return SAME_CALL + " with " + change if change else SAME_CALL

    def kept_line(self, ledger: Ledger) -> str:
        """What is kept of work that was interrupted and how to go on, for the same."""
        return f"what was paid for is kept in {ledger.path.parent}; continue with " + self.go_on(ledger)

    def resume_hint(self, ledger: Ledger) -> str:
        """What is kept and how to go on, for messages."""
        return resume_hint(ledger.path.parent)

    def repair_hint(self, ledger: Ledger) -> str:
        """The same where the caller's own code must be repaired first."""
        return self.resume_hint(ledger)

    def refuse_another(self, ledger: Ledger) -> None:
        """Raises RunDirError where the folder holds other work, or the same kind with another identity and answers."""
        folder, existing = ledger.path.parent, ledger.holds()
        if existing not in {"", self.kind}:
            raise RunDirError(
                f"{folder}: contains {named_work(existing)}, not {named_work(self.kind)}; choose another folder"
            )
        if has_begun(ledger) and (changes := self.changes(ledger)):
            named = changes[: self.most_changes]
            more = [f"and {len(changes) - len(named)} more"] if len(changes) > len(named) else []
            raise RunDirError(
                f"{folder}: contains {self.other or f'another {self.kind}'}: {'; '.join([*named, *more])}; restore "
                "these settings or " + self.way_out
            )

    def record(self, ledger: Ledger, caps: CapSettings) -> int:
        """Write the work into the ledger. Returns the size to reach: at least what is kept already."""
        identity, kept = self.stored_identity, ledger.kept()
        size = max(self.size, kept)
        if self.size < kept:
            log.warning("size is %d %s, but %d are already kept; none are removed", self.size, self.unit, kept)
        facts = {**self.facts_at(ledger), **caps, "work": self.kind, "size": size}
        if has_begun(ledger) or ledger.meta("identity") == identity:
            ledger.set_meta(**facts)
        else:  # new, or another that ended before its first answer
            ledger.begin(self.references, identity=identity, **facts)
        return size


@dataclass(frozen=True)
class Start:
    """One start of the work in a folder: one process, from its first call to its last."""

    ledger: Ledger
    work: Work
    size: int
    """How many samples or rows there shall be; at least what is kept already."""
    caps_left: CapsLeft
    recorder: RunRecorder
    reused_from: Ledger | None = None
    """The ledger of a run whose answers count here too."""


def resume_hint(folder: Path) -> str:
    """What is kept and how to go on with work in `folder`, for messages."""
    return f"paid answers are kept in {shlex.quote(str(folder))}; run the same command to continue"


def without_infinite(settings: CapSettings) -> CapSettings:
    """`settings` with None in place of infinite caps."""
    caps = {name: None if cap is None or math.isinf(cast(float, cap)) else cap for name, cap in settings.items()}
    return cast(CapSettings, caps)


def lasting_caps(ledger: Ledger, settings: CapSettings) -> CapSettings:
    """The caps of `settings`; for each that is None there, the one in the ledger. Infinite caps become None."""
    begun = has_begun(ledger)
    caps: dict[str, Any] = {name: ledger.meta(name) if cap is None and begun else cap for name, cap in settings.items()}
    return without_infinite(cast(CapSettings, caps))


def refuse_left_batches(ledger: Ledger, models: Iterable[Teacher]) -> None:
    """Raises ConfigError where calls wait in a batch that none of `models` follows: they would be paid for twice."""
    followed = {(model.endpoint, model.model) for model in models if model.batched}
    for batch in left_batches(ledger):
        if (batch["endpoint"], batch["model"]) not in followed:
            folder = shlex.quote(str(ledger.path.parent))
            raise ConfigError(
                f"{batch['calls']} calls wait in a batch of {batch['model']} at {batch['endpoint']} "
                f"({batch['name'] or 'not named yet'}); continue with that teacher in mode: batch or mixed, or "
                f"abandon it with: refed status {folder} --give-up"
            )


def check_caps(ledger: Ledger, models: Mapping[str, Teacher], settings: CapSettings) -> CapsLeft:
    """What a start may use with these models (role → model) by `settings` and the lasting caps. Nothing is written.

    Raises:
        ConfigError: as `budget_caps`; or earlier starts cost nobody knows what; or calls wait in the batch of another
            model.
    """
    settings = lasting_caps(ledger, settings)
    refuse_left_batches(ledger, models.values())
    caps, before, max_minutes = budget_caps(models, settings), spent(ledger), settings["max_minutes"]
    if caps.max_cost is not None and before.unpriced:
        raise ConfigError(
            f"max_cost: {before.unpriced} calls of earlier starts have no known price, so what is left of the cap is "
            "unknown; use max_calls"
        )
    seconds = None if max_minutes is None else max(0.0, 60 * max_minutes - before.seconds)
    return CapsLeft(caps, before, seconds, settings)


def budget_caps(models: Mapping[str, Teacher], settings: CapSettings) -> Caps:
    """The caps as a budget counts them.

    Raises:
        ConfigError: a cap that cannot be kept with these models, or that is below the worst case of one call.
    """
    settings = without_infinite(settings)
    max_cost, max_calls = settings["max_cost"], settings["max_calls"]
    caps = Caps(None if max_cost is None else int(max_cost * PICO), max_calls)
    for role, model in models.items():
        if caps != Caps() and model.uncapped:
            name = "max_calls" if max_cost is None else "max_cost"
            raise ConfigError(
                f"{name}: a cap cannot be kept with this {role}, which retries unseen ({model.uncapped}); pass a "
                "TeacherConfig, a teacher file or PROVIDER/NAME, or bound it by max_minutes"
            )
        if caps.max_cost is not None:
            _check_worst(role, model, caps.max_cost)
    return caps


def _check_worst(role: str, model: Teacher, max_cost: int) -> None:
    """Raises ConfigError where the model's worst case is unknown, or above the cap."""
    if model.least is None:
        raise ConfigError(
            f"max_cost: the price of {model.model} at {model.endpoint} is unknown, so a dollar cap cannot be kept; "
            f"set the {role}'s price ({{prompt: …, completion: …}} in dollars per million tokens) or use "
            "max_calls"
        )
    if model.least > max_cost:
        raise CapTooSmall(
            f"max_cost: {dollars(max_cost)} is below the worst case of one call, {dollars(model.least)} "
            f"({model.max_tokens} tokens written); raise it or lower the {role}'s max_tokens"
        )


def refuse_small_cap(budget: Budget) -> None:
    """Raises CapTooSmall where a cap is reached before the first call: it is below the worst case of that."""
    if (reached := budget.reached) is not None and not budget.calls:
        raise CapTooSmall(
            f"{reached.cap}: below the worst case of the first call, {dollars(reached.worst_picodollars)}; raise it or "
            "lower the teacher's max_tokens"
        ) from None
