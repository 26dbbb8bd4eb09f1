"""The caps of a run: what is left of them when it starts, and the errors where they cannot be kept."""

from __future__ import annotations

import asyncio
import math
import shlex
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypedDict, cast

from refed_dspy.concurrency import GRACE
from refed_dspy.config.base import Capped
from refed_dspy.errors import CapReached, CapTooSmall, ConfigError
from refed_dspy.ledger.batches import left_batches
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.identity import has_begun
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.records import PICO, dollars
from refed_dspy.teachers import Teacher

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
    """What a start may use with these models (role → model). Nothing is written.

    Raises:
        ConfigError: as `budget_caps`; or earlier starts cost nobody knows what; or calls wait in the batch of another
            model.
    """
    refuse_left_batches(ledger, models.values())
    caps, before, max_minutes = budget_caps(models, settings), spent(ledger), settings["max_minutes"]
    if caps.max_cost is not None and before.unpriced:
        raise ConfigError(
            f"max_cost: {before.unpriced} calls of earlier starts have no known price, so what is left of the cap is "
            "unknown; use max_calls"
        )
    seconds = None if max_minutes is None else max(0.0, 60 * max_minutes - before.seconds)
    return CapsLeft(caps, before, seconds)


def budget_caps(models: Mapping[str, Teacher], settings: CapSettings) -> Caps:
    """The caps as a budget counts them.

    Raises:
        ConfigError: a cap that cannot be kept with these models, or that is below the worst case of one call.
    """
    settings = without_infinite(settings)
    max_cost, max_calls = settings["max_cost"], settings["max_calls"]
    caps = Caps(None if max_cost is None else int(max_cost * PICO), max_calls)
    for role, model in models.items():
        if caps != Caps() and not model.reports_calls:
            name = "max_calls" if max_cost is None else "max_cost"
            raise ConfigError(
                f"{name}: a dspy.LM retries on its own, so a cap cannot be kept; pass the {role} as a "
                "TeacherConfig, a teacher file or PROVIDER/NAME"
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
