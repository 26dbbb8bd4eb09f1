"""A run in shards, each of which really made its samples: with filters, failures, thoughts and shared answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dspy

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback
from refed_dspy.config.teacher import PriceConfig
from refed_dspy.data.references import References
from refed_dspy.filters.base import Decision
from refed_dspy.jobs.work import CapSettings
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start
from refed_dspy.records import DataRow, Reference, Sample
from refed_dspy.runs.result import Synthesis
from refed_dspy.runs.spec import prepare

SHARDS = 4
SIZES = (12, 9, 7)
"""Samples of each shard; the last one was never begun."""
THOUGHT = "a thought"


class Styled(ReferenceLevelFeedback):
    """Asks one question more for each response, which has no part of the reference: shards share its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.style = dspy.Predict("question -> style")

    async def respond(self, reference: Reference, response_feedback: str, instruction: str, item: str = "") -> Sample:
        await self.style.acall(question=f"Which style, of {len(instruction) % 2 + 2}?")
        return await super().respond(reference, response_feedback, instruction, item)


class ByNumber:
    """Drops what has a number in it that can be divided, without rest."""

    def __init__(self, name: str, of_instruction: bool, divisor: int) -> None:
        self.name, self.of_instruction, self.divisor = name, of_instruction, divisor

    def check(self, row: DataRow) -> Decision:
        number = sum(map(ord, row.instruction if self.of_instruction else row.response))
        kept = number % self.divisor != 0
        return Decision(kept, "" if kept else "can be divided", float(number), "by its letters")

    def remember(self, row: DataRow) -> None:
        pass


def references(count: int = 18) -> References:
    """The references of the run. The second has an id of digits alone, as an instruction's number has."""
    pairs = (
        Reference(instruction=f"Explain topic {n}.", response=f"It is {n}.", source=f"row {n}") for n in _naturals()
    )
    all_digits = next(pair for pair in pairs if pair.id.isdigit() and pair.id[0] != "0")
    first, *others = itertools.islice(pairs, count - 1)
    return References((first, all_digits, *others), {"duplicate": 3})


def _naturals() -> Iterator[int]:
    return itertools.count()


def settings(server: SimulatedTeacher, size: int, folder: Path) -> dict[str, Any]:
    teacher = refed_dspy.TeacherConfig(
        model="sim/sim-model",
        api_base=server.base_url,
        malformed_retries=0,
        price=PriceConfig(prompt=1.0, completion=4.0),
        max_tokens=500,
    )
    return {
        "program": Styled(), "size": size, "teacher": teacher, "run_dir": folder, "track": False,
        "filters": [ByNumber("early", True, 5), ByNumber("late", False, 4)], "max_failure_share": 0.9,
        "per_reference": 2,
    }  # fmt: skip


def begun_run(server: SimulatedTeacher, folder: Path, size: int = 40) -> References:
    """A run's own ledger, as it is before the first shard has begun. Returns its references."""
    whole = references()
    given = settings(server, size, folder)
    spec = prepare(given.pop("program"), whole, **given)
    with Ledger.create(folder) as ledger:
        spec.work().record(ledger, CapSettings(max_cost=5.0, max_calls=None, max_minutes=None))
        begin_start(ledger)
    return whole


def make_shard(server: SimulatedTeacher, folder: Path, whole: References, number: int, size: int) -> Synthesis:
    """Make samples in this shard, up to `size`. Some questions fail."""
    server.control(faults={"malformed": 0.08}, reasoning=THOUGHT, response_words=8)
    own = References(tuple(whole.items[number::SHARDS]))
    given = settings(server, size, shard_folders(folder)[number])
    return refed_dspy.synthesize(given.pop("program"), own, progress=False, **given)


def shard_folders(folder: Path) -> Sequence[Path]:
    return [folder / "shards" / f"{number:03}" for number in range(SHARDS)]


def made_run(server: SimulatedTeacher, folder: Path) -> References:
    """A run with what its shards made, each in two starts, before it is gathered."""
    whole = begun_run(server, folder)
    for share in (2, 1):
        for number, size in enumerate(SIZES):
            assert make_shard(server, folder, whole, number, size // share).complete
    return whole
