"""The state of whatever has a ledger: a run, a comparison, a compile, a filtering, a recycling, a measurement.

`running` follows from the lock. Each start writes `killed` as it begins, and its real outcome as it ends, since a
killed process can write nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from refed_dspy.errors import CapReached, NothingKept, RefedError, one_line
from refed_dspy.ledger.connection import FILE, is_at_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Statement

FUNNEL = "funnel.json"
"""What a filtering leaves in its folder, where no judge was asked instead of a ledger."""
RUNNING, STOPPED, KILLED = "running", "stopped", "killed"
SHORT, CAPPED, DONE = "ended short", "at its cap", "done"
UNGATHERED = "ungathered"
"""What the ledger of a run on a cluster says from when workers begin until what they made is gathered."""
ESTIMATED = "this was only an estimate"
INTERRUPTED = "interrupted; run the same command to continue"
NO_WORD = "its process was killed; run the same command to continue"
"""The reason for `killed`: a killed process writes none."""
_LAST_ACTIVE = (
    "SELECT max(at) FROM (SELECT max(begun, last) AS at FROM starts"
    " UNION ALL SELECT * FROM (SELECT created + seconds FROM calls ORDER BY id DESC LIMIT 1))"
)


class End(NamedTuple):
    """How a start ended, and why where it is not done."""

    state: str
    reason: str = ""

    @classmethod
    def by(cls, error: BaseException) -> End:
        """How a start ends that `error` ends."""
        if isinstance(error, NothingKept | CapReached):
            return cls(CAPPED if isinstance(error, CapReached) else SHORT, one_line(error, 600))
        if isinstance(error, KeyboardInterrupt | asyncio.CancelledError | SystemExit | GeneratorExit):
            return cls(STOPPED, INTERRUPTED)
        kind = "" if isinstance(error, RefedError) else f"{type(error).__name__}: "
        return cls(STOPPED, one_line(f"{kind}{error}", 600))


def ended(end: End) -> Statement:
    """The statement that writes how the last start ended."""
    value = json.dumps({**end._asdict(), "at": time.time()})
    return ("INSERT OR REPLACE INTO meta VALUES ('last_end', ?)", (value,))


def write_end(ledger: Ledger, end: End) -> None:
    """Write how this start ends. Raises RunStopped where it cannot be written."""
    ledger.commit([ended(end)])


def last_end(ledger: Ledger) -> End:
    """How the last start ended, as the ledger has it: `killed` also while it is at work. Of a folder that an earlier
    version wrote, which noted no end: done where its size is reached, else stopped."""
    if (stored := ledger.meta("last_end")) is not None:
        return End(stored["state"], stored["reason"])
    size = ledger.meta("size")
    return End(DONE if size and ledger.kept() >= size else STOPPED)


def state_of(ledger: Ledger) -> dict[str, Any]:
    """`state`, its `reason` (empty where there is none to give), and when the work was `last_active` (UTC, ISO 8601;
    None before its first start)."""
    end = last_end(ledger)
    if is_at_work(ledger.path.parent):
        end = End(RUNNING)
    elif end.state == KILLED:
        end = last_end(ledger)  # it may have ended between the two looks
    moments = [ledger.db.execute(_LAST_ACTIVE).fetchone()[0], (ledger.meta("last_end") or {}).get("at")]
    known = [moment for moment in moments if moment is not None]
    return {**end._asdict(), "last_active": _utc(max(known)) if known else None}


def state_without_ledger(folder: Path) -> dict[str, Any]:
    """The state of a filtering that asked no judge: done when it was written. Raises OSError."""
    return {**End(DONE)._asdict(), "last_active": _utc((folder / FUNNEL).stat().st_mtime)}


def _utc(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def state_in(folder: Path) -> str:
    """The state of the work in `folder`; done where it has no ledger, since nobody had to be asked."""
    if not (folder / FILE).is_file():
        return DONE
    with Ledger.read(folder) as ledger:
        return str(state_of(ledger)["state"])
