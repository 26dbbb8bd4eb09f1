"""Group commit: whatever is to be written within one turn of the event loop shares one transaction.

A commit costs as much as the rows of several units. The busier a run is, the more units end in one turn, so the
price of a commit falls when it matters. No unit is ever split: its statements stand together in one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
        """Write `statements` at the end of this turn, without waiting. A failure is raised by whatever comes next."""
        if statements:
            self._add(statements, None)

    def _add(self, statements: Sequence[Statement], done: asyncio.Future[None] | None) -> None:
        if self._failed is not None:
            raise self._failed
        if not self._units:
            asyncio.get_running_loop().call_soon(self.flush)
        self._units.append((statements, done))

    def flush(self) -> None:
        """Write what has come together. Called by itself at the end of a turn; and once more before closing."""
        units, self._units = self._units, []
        if not units:
            return
        try:
            self.ledger.commit([statement for statements, _ in units for statement in statements])
        except BaseException:  # noqa: BLE001 — one unit's fault must not cost the others what they paid for
            for statements, done in units:
                _tell(done, self._alone(statements))
        else:
            for _, done in units:
                _tell(done, None)

    def _alone(self, statements: Sequence[Statement]) -> BaseException | None:
        try:
            self.ledger.commit(statements)
        except BaseException as error:  # noqa: BLE001 — handed to whoever waits, and kept for those who do not
            self._failed = error
            return error
        return None

    def close(self) -> None:
        """Write what is left. Raises RunStopped where anything could not be written."""
        self.flush()
        if self._failed is not None:
            raise self._failed


def _tell(done: asyncio.Future[None] | None, error: BaseException | None) -> None:
    if done is None or done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(None)
