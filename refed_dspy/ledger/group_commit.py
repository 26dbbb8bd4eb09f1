"""Group commit: all units that are written within one iteration of the event loop share one transaction.

A commit takes as long as writing the rows of several units. The busier a run is, the more units end in one iteration,
so the time per unit falls when it matters. A unit is never split: its statements are in one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from refed_dspy.errors import LedgerLost
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Statement


class GroupCommit:
    """Writes to one ledger, from one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._units: list[tuple[Sequence[Statement], asyncio.Future[None] | None]] = []
        self._failed: BaseException | None = None

    async def commit(self, statements: Sequence[Statement]) -> None:
        """Write `statements`; they are committed when this returns. Raises RunStopped where they could not be."""
        if not statements:
            return
        done = asyncio.get_running_loop().create_future()
        self._add(statements, done)
        await done

    def post(self, statements: Sequence[Statement]) -> None:
        """Write `statements` at the end of this iteration, without waiting. A failure is raised by the next write."""
        if statements:
            self._add(statements, None)

    def _add(self, statements: Sequence[Statement], done: asyncio.Future[None] | None) -> None:
        if self._failed is not None:
            raise self._failed
        if not self._units:
            asyncio.get_running_loop().call_soon(self.flush)
        self._units.append((statements, done))

    def flush(self) -> None:
        """Write all that is waiting. Runs by itself at the end of an iteration, and once more before closing."""
        units, self._units = self._units, []
        if not units:
            return
        try:
            self.ledger.commit([statement for statements, _ in units for statement in statements])
        except LedgerLost as error:  # written, for what that is worth
            self._failed = error
            for _, done in units:
                _finish(done, error)
        except BaseException:  # noqa: BLE001 — one unit's fault must not lose the others' paid answers
            for statements, done in units:
                _finish(done, self._commit_alone(statements))
        else:
            for _, done in units:
                _finish(done, None)

    def _commit_alone(self, statements: Sequence[Statement]) -> BaseException | None:
        try:
            self.ledger.commit(statements)
        except BaseException as error:  # noqa: BLE001 — raised where the unit is awaited, and by the next write
            self._failed = error
            return error
        return None

    def close(self) -> None:
        """Write what is left. Raises RunStopped where anything could not be written."""
        self.flush()
        if self._failed is not None:
            raise self._failed


def _finish(done: asyncio.Future[None] | None, error: BaseException | None) -> None:
    """End the wait for a unit, if somebody waits for it."""
    if done is None or done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(None)
