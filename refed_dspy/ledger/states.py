"""What work a folder holds, in words; what differs between two starts of it; and the state of whatever has a ledger: a
run, a comparison, a compile, a filtering, a recycling, a measurement.

`running` follows from the lock. Each start writes `killed` as it begins, and its real outcome as it ends, since a
killed process can write nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refed_dspy.errors import CapReached, NothingKept, RefedError, Wording, as_options, one_line
from refed_dspy.ledger.batches import unsettled_calls
from refed_dspy.ledger.connection import FILE, is_at_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Statement, noted

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
    """How a start ended, and why where it is not done. `reached`: of a run at its cap, which one and after how much;
    empty in what an earlier version wrote."""

    state: str
    reason: str = ""
    reached: str = ""

    @classmethod
    def by(cls, error: BaseException) -> End:
        """How a start ends that `error` ends."""
        if isinstance(error, NothingKept | CapReached):
            return cls(CAPPED if isinstance(error, CapReached) else SHORT, one_line(error, 600))
        if isinstance(error, KeyboardInterrupt | asyncio.CancelledError | SystemExit | GeneratorExit):
            return cls(STOPPED, INTERRUPTED)
        kind = "" if isinstance(error, RefedError) else f"{type(error).__name__}: "
        return cls(STOPPED, one_line(kind + str(error), 600))


def ended(end: End) -> Statement:
    """The statement that writes how the last start ended."""
    return noted("last_end", {**end._asdict(), "command": as_options(end.reason), "at": time.time()})


def write_end(ledger: Ledger, end: End) -> None:
    """Write how this start ends. Raises RunStopped where it cannot be written."""
    ledger.commit([ended(end)])


def last_end(ledger: Ledger) -> End:
    """How the last start ended, as the ledger has it: `killed` also while it is at work. Of a folder that an earlier
    version wrote, which noted no end: done where its size is reached, else stopped."""
    if (stored := ledger.meta("last_end")) is not None:
        reason = Wording(stored["reason"], stored.get("command", stored["reason"]))
        return End(stored["state"], reason, stored.get("reached", ""))
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


def named_work(work: str) -> str:
    """The kind of work in a folder (`Ledger.holds`) with its article: "a run", "an agreement"."""
    if work in {"statistics", "answers"}:
        return work
    return f"an {work}" if work[:1] in "aeio" else f"a {work}"


def differences(stored: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences between two nested mappings, as one text each: "seed was 1, is 2"."""
    texts = []
    for key in sorted({*stored, *current}):
        old, new = _by_name(stored.get(key)), _by_name(current.get(key))
        if old == new and stored.get(key) != current.get(key):  # mappings are equal in any order
            texts.append(f"{prefix}{key} were in another order")
        elif isinstance(old, dict) and isinstance(new, dict):
            texts += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            texts.append(f"{prefix}{key} was {old}, is {new}")
    return texts


def _by_name(value: Any) -> Any:
    """A list of names with their settings, as filters are stored, as a mapping; any other value as it is."""
    if not isinstance(value, list) or not all(isinstance(each, list) and len(each) == 2 for each in value):
        return value
    return {str(name): settings for name, settings in value}


def has_begun(ledger: Ledger) -> bool:
    """Whether there are paid answers or calls in batches: a later start could use them, so it must be the same work."""
    return ledger.has_answers() or bool(unsettled_calls(ledger))
