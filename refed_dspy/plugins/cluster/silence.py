"""Which workers have said nothing for too long: frozen, or on a machine that nobody reaches."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from refed_dspy.plugins.cluster.coordinator import LastWord

SILENT = 30.0
"""Seconds without a word after which a worker's shard goes to another."""
OPENING = 600.0
"""The same of one that has not said a word yet about its shard: it may be loading models, as long as Ray does not say
that it has died."""
SLOW = 15.0
"""Seconds without a word after which those who watch are told."""
LONGEST_LOOK = 2.0
"""Seconds that count at most between two looks: where nobody looked, as while the coordinator began again or this
machine slept, nobody could be heard."""


@dataclass
class Silence:
    """How long each worker at a shard has said nothing, by looks at the coordinator's totals, about one a second."""

    looked: float = field(default_factory=time.monotonic)
    quiet: dict[str, float] = field(default_factory=dict)
    words: dict[str, float | None] = field(default_factory=dict)
    """Worker → when it said its last word about its shard, by the coordinator's clock; None: it has not said any."""

    def look(self, holders: Collection[str], words: Mapping[str, LastWord]) -> list[str]:
        """Those of `holders` that have been silent for SILENT seconds, or OPENING before their first word. `words`: of
        those who have said one since they hold their shards."""
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, LONGEST_LOOK), now
        before, quiet = self.words, self.quiet
        self.words = {name: words[name].at if name in words else None for name in holders}
        self.quiet = {
            name: quiet.get(name, 0.0) + passed if before.get(name, 0.0) == at else 0.0
            for name, at in self.words.items()
        }  # fmt: skip
        return [
            name for name, seconds in self.quiet.items() if seconds >= (OPENING if self.words[name] is None else SILENT)
        ]

    def slow(self) -> list[str]:
        """Those who have said nothing for SLOW seconds."""
        return sorted(name for name, seconds in self.quiet.items() if seconds >= SLOW)
