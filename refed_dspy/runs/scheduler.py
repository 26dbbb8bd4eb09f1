"""Runs a plan: at most so many units at once, each settled the moment it ends."""

from __future__ import annotations

import asyncio
from typing import Protocol

from refed_dspy.concurrency import GRACE, land
from refed_dspy.errors import RowError
from refed_dspy.runs.plan import Plan, Propose, Respond, Study, Unit


class Work(Protocol):
    """What a unit of the plan means. Each returns once its result is committed; a RowError fails the unit."""

    async def study(self, unit: Study) -> None: ...

    async def propose(self, unit: Propose) -> list[tuple[int, str]]:
        """Ids and texts of the instructions that are new."""
        ...

    async def respond(self, unit: Respond) -> bool:
        """Whether it became a sample that is kept."""
        ...

    def unusable(self, unit: Respond, error: RowError) -> None:
        """Told of an instruction whose answer failed."""
        ...

    def fruitless(self, unit: Propose, error: RowError) -> None:
        """Told of a synthesis call that failed."""
        ...

    def affordable(self) -> int | None:
        """How many samples more can be paid for, at least one; None: no cap is in sight."""
        ...

    def stop(self) -> None:
        """Told that the run is ending: calls in flight may land, none may begin."""
        ...


async def run(plan: Plan, work: Work, slots: int, grace: float = GRACE) -> None:
    """Run `plan` until it is reached or exhausted, at most `slots` units at once.

    Raises:
        Whatever `work` raises but RowError: an error of the teacher or the ledger, or a bug. Then, and when this is
        cancelled, what is in flight is given `grace` seconds to be committed before it is cancelled too.
    """
    running: set[asyncio.Task[None]] = set()
    try:
        await _feed(plan, work, slots, running)
    except BaseException:
        work.stop()
        await land(running, grace)
        raise


async def _feed(plan: Plan, work: Work, slots: int, running: set[asyncio.Task[None]]) -> None:
    """Keep `slots` units running for as long as the plan has any to hand out."""
    ended: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
    while True:
        plan.look_ahead(work.affordable())
        while len(running) < slots and (unit := plan.next_unit()) is not None:
            task = asyncio.ensure_future(_perform(plan, work, unit))
            task.add_done_callback(ended.put_nowait)
            running.add(task)
        if not running:
            return
        done = await ended.get()
        running.discard(done)
        done.result()


async def _perform(plan: Plan, work: Work, unit: Unit) -> None:
    """Do one unit and tell the plan how it ended. A RowError is an ending; anything else stops the run."""
    match unit:
        case Study():
            try:
                await work.study(unit)
            except RowError:
                plan.studied(unit, failed=True)
            else:
                plan.studied(unit)
        case Propose():
            new: list[tuple[int, str]] = []
            try:
                new = await work.propose(unit)
            except RowError as error:
                work.fruitless(unit, error)
            plan.proposed(unit, new)
        case Respond():
            try:
                kept = await work.respond(unit)
            except RowError as error:
                work.unusable(unit, error)
                plan.responded(unit, kept=False)
            else:
                plan.responded(unit, kept=kept)
