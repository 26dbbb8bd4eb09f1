"""What a run has cost so far, and how long it has worked, read from its ledger."""

from __future__ import annotations

import time
from dataclasses import dataclass

from refed_dspy.ledger.batches import left_batches
from refed_dspy.ledger.connection import is_at_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import SENT
from refed_dspy.ledger.states import KILLED, NO_WORD, End, ended
from refed_dspy.records import PICO, dollars
from refed_dspy.text import counted


@dataclass(frozen=True)
class Spent:
    """Totals over all starts of a run. `unpriced` counts calls whose price is unknown; `seconds` is time of work."""

    picodollars: int
    calls: int
    unpriced: int
    seconds: float

    @property
    def cost(self) -> float:
        """Dollars."""
        return self.picodollars / PICO

    def __str__(self) -> str:
        """For people: dollars and calls."""
        return f"{self.money}, {counted(self.calls, 'call')}" if self.calls else "nothing paid"

    @property
    def money(self) -> str:
        """Dollars, for people."""
        if self.unpriced:
            return f"{dollars(self.picodollars)} and more at unknown prices" if self.picodollars else "price unknown"
        return dollars(self.picodollars)


def spent(ledger: Ledger) -> Spent:
    """What was charged, including the worst cases of calls that never reported."""
    cost, calls, unpriced = ledger.db.execute("SELECT total(cost), total(calls), total(unpriced) FROM usage").fetchone()
    return Spent(int(cost), int(calls), int(unpriced), seconds_at_work(ledger))


def in_flight_cost(ledger: Ledger) -> float:
    """Dollars of what was charged that calls under way may still not cost: of work that goes on, or whose batches do.
    The rest of such reservations is spent, as far as anyone knows."""
    if not is_at_work(ledger.path.parent) and not left_batches(ledger):
        return 0.0
    return float(ledger.db.execute("SELECT total(in_flight_cost) FROM usage").fetchone()[0]) / PICO


def set_aside(ledger: Ledger) -> str:
    """What is charged for calls whose outcome is unknown, for people; "" where there are none."""
    calls, cost = ledger.db.execute(
        "SELECT count(*), total(cost) FROM calls WHERE outcome IN ('no answer', 'lost', 'cancelled') AND cost > 0"
    ).fetchone()
    money = dollars(int(cost))
    return f"{money} is set aside for {counted(calls, 'call')} without an answer, which may be billed" if calls else ""


def seconds_at_work(ledger: Ledger) -> float:
    """The time of work: from each start to the last row that was written before the next start."""
    starts: list[tuple[float, float]] = ledger.db.execute("SELECT begun, last FROM starts ORDER BY begun").fetchall()
    ends = [begun for begun, _ in starts[1:]] + [time.time()]
    return sum(max(0.0, min(last, end) - begun) for (begun, last), end in zip(starts, ends, strict=False))


def begin_start(ledger: Ledger) -> None:
    """Begin a start: calls that were in flight when the last one was killed are lost, and stay charged at their worst
    case. Those in a batch are still in flight. Until it says how it ended, it was killed."""
    lost = "UPDATE calls SET outcome='lost' WHERE outcome=? AND id NOT IN (SELECT call FROM batched)"
    ledger.start([(lost, (SENT,)), ended(End(KILLED, NO_WORD))])
