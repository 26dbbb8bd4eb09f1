"""Runs a plan with at most `slots` units in flight, and tells it how each one ended."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Protocol

from refed_dspy.concurrency import GRACE, keep_running
from refed_dspy.errors import RowError
from refed_dspy.runs.plan import Plan, Propose, Respond, Study, Unit


class Worker(Protocol):
    """Does the units of a plan. Each method returns once its result is committed; a RowError fails the unit."""

    async def study(self, unit: Study) -> None: ...

    async def propose(self, unit: Propose) -> list[tuple[int, str]]:
        """Ids and texts of the instructions that are new."""
        ...

    async def respond(self, unit: Respond) -> bool:
        """Whether it became a sample that is kept."""
        ...

    def response_failed(self, unit: Respond, error: RowError) -> None:
        """Called for an instruction whose answer failed."""
        ...

    def proposal_failed(self, unit: Propose, error: RowError) -> None:
        """Called for a synthesis call that failed."""
        ...

    def affordable(self) -> int | None:
        """How many more samples the caps allow, at least one; None: no cap will be reached."""
        ...

    def stop(self) -> None:
        """Called when the run ends early: calls in flight may finish, none may begin."""
        ...


async def run_plan(plan: Plan, worker: Worker, slots: int, grace: float = GRACE) -> None:
    """Run `plan` until it is complete or exhausted, at most `slots` units at once.

    Raises:
        Whatever `worker` raises except RowError: an error of the teacher or the ledger, or a bug. Then, and when this
        is cancelled, units in flight get `grace` seconds to be committed before they are cancelled too.
    """

    def units() -> Iterator[Awaitable[None]]:
        plan.look_ahead(worker.affordable())
        while (unit := plan.next_unit()) is not None:
            yield _perform(plan, worker, unit)

    await keep_running(units, slots, worker.stop, grace)


async def _perform(plan: Plan, worker: Worker, unit: Unit) -> None:
    """Do one unit and report to the plan how it ended. A RowError fails the unit; any other error stops the run."""
    match unit:
        case Study():
            try:
                await worker.study(unit)
            except RowError:
                plan.studied(unit, failed=True)
            else:
                plan.studied(unit)
        case Propose():
            new: list[tuple[int, str]] = []
            try:
                new = await worker.propose(unit)
            except RowError as error:
                worker.proposal_failed(unit, error)
            plan.proposed(unit, new)
        case Respond():
            try:
                kept = await worker.respond(unit)
            except RowError as error:
                worker.response_failed(unit, error)
                plan.responded(unit, kept=False)
            else:
                plan.responded(unit, kept=kept)
