"""Group commit: whatever is to be written within one turn of the event loop shares one transaction.

A commit costs as much as the rows of several units. The busier a run is, the more units end in one turn, so the
price of a commit falls when it matters. No unit is ever split: its statements stand together in one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.rows import Statement


class GroupCommit:
    """Writes to one ledger, from one event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._statements: list[Statement] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._failed: BaseException | None = None

    async def commit(self, statements: Sequence[Statement]) -> None:
        """Write `statements`; they are committed when this returns. Raises RunStopped where they could not be."""
        if not statements:
            return
        self.post(statements)
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        await done

    def post(self, statements: Sequence[Statement]) -> None:
        """Write `statements` at the end of this turn, without waiting. A failure is raised by whatever comes next."""
        if self._failed is not None:
            raise self._failed
        if not self._statements:
            asyncio.get_running_loop().call_soon(self.flush)
        self._statements += statements

    def flush(self) -> None:
        """Write what has come together. Called by itself at the end of a turn; and once more before closing."""
        statements, waiting = self._statements, self._waiting
        self._statements, self._waiting = [], []
        if not statements:
            return
        try:
            self.ledger.commit(statements)
        except BaseException as error:  # noqa: BLE001 — handed to everyone who waits, and kept for those who do not
            self._failed = error
        for done in waiting:
            if not done.done():
                done.set_exception(self._failed) if self._failed else done.set_result(None)

    def close(self) -> None:
        """Write what is left. Raises RunStopped where anything could not be written."""
        self.flush()
        if self._failed is not None:
            raise self._failed
