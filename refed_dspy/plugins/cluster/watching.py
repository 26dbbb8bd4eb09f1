"""What those who watch a run on a cluster see, where it was started and elsewhere: its numbers over all shards."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refed_dspy.errors import ExportError
from refed_dspy.files import write_json
from refed_dspy.ledger.summary import LIVE
from refed_dspy.plugins.cluster.account import NOTHING, Amounts
from refed_dspy.plugins.cluster.coordinator import Totals
from refed_dspy.teachers.progress import Progress

RATE_OVER = 10.0
"""Seconds over which calls a second are counted."""
log = logging.getLogger("refed_dspy.cluster")


@dataclass
class Watching:
    """The `progress` of the work in `folder`, and the file that others read (`ledger.live`). `before`: what was made
    and spent already that the totals do not count."""

    folder: Path
    progress: Progress
    before: Amounts = NOTHING
    said: set[str] = field(default_factory=set)
    """What workers warned of and was passed on."""
    calls_at: deque[tuple[float, int]] = field(default_factory=deque)
    """Moments, and the calls until then."""

    def gains(self, totals: Totals) -> bool:
        """Whether more was made since it was last shown."""
        return self.before.kept + totals.kept > self.progress.kept

    def show(self, totals: Totals, at_work: Mapping[str, Any]) -> None:
        """Show the run's numbers of this moment. `at_work`: `nodes`, `workers`, `deaths` and who is `slow`."""
        progress, kept = self.progress, self.before.kept + totals.kept
        for _ in range(kept - progress.kept):
            progress.keep()
        progress.picodollars, progress.calls = self.before.spent + totals.spent, totals.calls
        told = [word.progress for word in totals.last_words.values()]
        progress.in_flight = sum(each.get("in_flight", 0) for each in told)
        for name, word in totals.last_words.items():
            self.pass_on(name, word.progress.get("warned", ()))
        numbers = {
            "at": time.time(),
            "kept": kept,
            "cost": progress.cost if progress.priced else None,
            "calls": totals.calls,
            "calls_a_second": round(self._rate(totals.calls), 1),
            "in_flight": progress.in_flight,
            "shards": {"all": totals.shards, "done": totals.done, "dry": totals.dry},
        }
        try:
            write_json(self.folder / LIVE, {**numbers, **at_work})
        except ExportError as error:  # the work goes on, whoever cannot watch it
            self.pass_on("refed status", [f"shows older numbers: {error}"])

    def pass_on(self, name: str, texts: Iterable[str]) -> None:
        """Say what a worker, or whoever has this `name`, warned of, each text once."""
        for text in texts:
            if text not in self.said:
                self.said.add(text)
                log.warning("%s: %s", name, text)

    def _rate(self, calls: int) -> float:
        """Calls a second, over the last RATE_OVER seconds."""
        now = time.monotonic()
        self.calls_at.append((now, calls))
        while len(self.calls_at) > 2 and self.calls_at[0][0] < now - RATE_OVER:
            self.calls_at.popleft()
        then, before = self.calls_at[0]
        return (calls - before) / (now - then) if now > then else 0.0
