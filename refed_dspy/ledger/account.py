"""One account of a run, read once from its ledger: what it came to, how it was set up, and its course by the minute.

The report, the card and MLflow tell the same facts from it, each in its own words; `refed status` is its `status`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import WorkSettings, settings_of
from refed_dspy.ledger.summary import run_status
from refed_dspy.records import PICO, digest

# Per minute since the run first began: calls, dollars, tokens, failed calls; and samples.
_CALLS = """
SELECT CAST((created + seconds - :begun) / 60 AS INTEGER) minute, count(*), total(cost), total(prompt_tokens),
       total(completion_tokens), sum(outcome != 'ok')
FROM calls WHERE outcome != 'sent' GROUP BY minute ORDER BY minute
"""
_SAMPLES = (
    "SELECT CAST((created - :begun) / 60 AS INTEGER) minute, count(*) FROM samples GROUP BY minute ORDER BY minute"
)
_COUNTS = ("calls", "dollars", "prompt_tokens", "completion_tokens", "failed_calls")


@dataclass(frozen=True)
class RunAccount:
    """A run as its ledger has it. Names and addresses are as the run used them: whoever publishes it redacts them."""

    status: Mapping[str, Any]
    """State, counts, costs and reasons, in JSON types (`run_status`)."""
    settings: WorkSettings
    """What it was last started with."""
    program: str
    """The program's class."""
    prompts: Mapping[str, str]
    """Predictor → the digest of its prompt."""
    source: Mapping[str, Any]
    """Where a saved program came from."""
    references: str
    """The digest of all references."""
    features: Mapping[str, str]
    """Name → what feedback on an instruction looks for."""
    instructions_per_feature: int | None
    judge_identity: Mapping[str, Any]
    filters: Sequence[tuple[str, Mapping[str, Any]]]
    """Label and identity of each, in order."""
    asked: Sequence[Any]
    """The identities of all teachers that were asked in any start."""

    @classmethod
    def of(cls, ledger: Ledger) -> Self:
        """The account as it stands now; of other work than a run, what it has in common with one."""
        identity = ledger.meta("identity") or {}
        return cls(
            status=run_status(ledger),
            settings=settings_of(ledger),
            program=str(identity.get("kind", "")),
            prompts=identity.get("program") or {},
            source={name: value for name, value in (ledger.meta("program_source") or {}).items() if value is not None},
            references=str(identity.get("references", "")),
            features=ledger.meta("features") or dict.fromkeys(identity.get("features") or (), ""),
            instructions_per_feature=identity.get("instructions_per_feature"),
            judge_identity=identity.get("judge") or {},
            filters=[(str(label), settings) for label, settings in identity.get("filters") or ()],
            asked=list(ledger.meta("asked_teachers") or ()),
        )

    @property
    def prompts_digest(self) -> str:
        return digest(self.prompts)

    @property
    def pools(self) -> dict[str, str]:
        """Stage → its teachers' names; under ANY those of every other stage."""
        return {
            stage: " + ".join(str(member.get("model") or "") for member in pool)
            for stage, pool in self.settings.pools.items()
        }


def per_minute(ledger: Ledger) -> dict[int, dict[str, float]]:
    """Minute since the first start → running totals at its end, and that time in seconds since the epoch."""
    row = ledger.db.execute("SELECT min(begun) FROM starts").fetchone()
    if row[0] is None:
        return {}
    begun = float(row[0])
    calls = {int(m): counts for m, *counts in ledger.db.execute(_CALLS, {"begun": begun})}
    samples = {int(m): int(count) for m, count in ledger.db.execute(_SAMPLES, {"begun": begun})}
    totals = dict.fromkeys((*_COUNTS, "kept"), 0.0)
    points = {}
    for minute in sorted({*calls, *samples}):
        for name, count in zip(_COUNTS, calls.get(minute, [0] * len(_COUNTS)), strict=True):
            totals[name] += count / PICO if name == "dollars" else count
        totals["kept"] += samples.get(minute, 0)
        points[minute] = {**totals, "time": begun + 60 * (minute + 1)}
    return points
