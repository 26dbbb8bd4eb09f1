"""A comparison's rows, read from its ledger: the programs run again, and the ledger answers every question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from refed_dspy.errors import RowError
from refed_dspy.ledger.connection import damaged
from refed_dspy.ledger.history import kept_instructions, opened_references, tried_in_vain
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.compare.replay_lm import Replay, replaying
from refed_dspy.plugins.compare.side_by_side import SideBySide
from refed_dspy.programs.judges import Graded, Verdict
from refed_dspy.records import Reference, Sample
from refed_dspy.teachers import Teacher


@dataclass(frozen=True, repr=False)
class ComparedAnswers:
    """The answers to one instruction: program → its sample, or why there is none; and the judge's verdicts."""

    samples: Mapping[str, Sample]
    failed: Mapping[str, str]
    verdicts: Mapping[str, Verdict]
    """Program → the judge's verdict on (its response, the baseline's response)."""
    grades: Mapping[str, Graded]
    """Program → its response's grade by overall quality."""


@dataclass(frozen=True, repr=False)  # asyncio builds the repr of a task's result: a second's work for all rows
class ComparedRow:
    """One instruction, what each program made of it, and the judge's verdicts."""

    number: int
    reference: str
    feature: str
    instruction: str
    answered: ComparedAnswers


@dataclass(frozen=True, repr=False)
class Compared:
    """A comparison as its ledger holds it. Every mapping is by program unless it says otherwise."""

    rows: Sequence[ComparedRow]
    references: Sequence[Reference]
    """Those that gave rows."""
    seed_grades: Mapping[str, Graded]
    """Reference id → the grade of its own response."""
    asked: Mapping[str, set[str]]
    """Program → the key of every question that the program would have asked alone, without the writing of the
    instructions: for every reference that was opened and every instruction that was tried, with or without a row."""

    def missing(self, name: str) -> Counter[str]:
        """Kind of failure → rows without the program's answer."""
        return Counter(row.answered.failed[name] for row in self.rows if name in row.answered.failed)


async def read_compared(ledger: Ledger, program: SideBySide, models: Mapping[str, Teacher]) -> Compared:
    """The comparison so far."""
    references, reader = ledger.references(), _Reader(program, Replay(ledger, models["teacher"]))
    rows = []
    with replaying(reader.replay, {"judge": Replay(ledger, models["judge"])}):
        for index in opened_references(ledger):
            await reader.learn(index, references[index])
        kept = kept_instructions(ledger)
        for number, index, feature, text in kept:
            answered = await reader.answered(index, references[index], text, str(number))
            rows.append(ComparedRow(number, references[index].id, feature, text, answered))
        for number, index, text in tried_in_vain(ledger):
            await reader.written(index, references[index], text, str(number))
        used = [references[index] for index in sorted({index for _, index, _, _ in kept})]
        grades = {ref.id: await program.grade_reference(ref) for ref in used} if program.seed_graded else {}
    return Compared(rows, used, grades, reader.asked)


class _Reader:
    """Runs each program by itself, and notes what it asks."""

    def __init__(self, side_by_side: SideBySide, replay: Replay) -> None:
        self.side_by_side, self.replay = side_by_side, replay
        self.asked: dict[str, set[str]] = {name: set() for name in side_by_side.programs}
        self.learned: dict[int, dict[str, Any]] = {}
        """Reference → program → its feedback on the response, or the RowError that it failed with."""

    async def learn(self, index: int, reference: Reference) -> None:
        """Collect each program's feedback on the reference's response."""
        learned = self.learned.setdefault(index, {})
        for name, program in self.side_by_side.programs.items():
            self.replay.asked = self.asked[name]
            try:
                learned[name] = await program.collect_response_feedback(reference)
            except RowError as error:
                learned[name] = error

    async def written(self, index: int, reference: Reference, text: str, item: str) -> ComparedAnswers:
        """What each program made of an instruction, not judged."""
        if index not in self.learned:
            await self.learn(index, reference)
        samples, failed = {}, {}
        for name, program in self.side_by_side.programs.items():
            self.replay.asked = self.asked[name]
            learned = self.learned[index][name]
            try:
                if isinstance(learned, RowError):
                    raise learned
                samples[name] = await program.respond(reference, learned, text, item)
            except RowError as error:
                failed[name] = error.kind
        return ComparedAnswers(samples, failed, {}, {})

    async def answered(self, index: int, reference: Reference, text: str, item: str) -> ComparedAnswers:
        """What each program made of an instruction, and the judge's verdicts and grades."""
        made = await self.written(index, reference, text, item)
        if self.side_by_side.against not in made.samples:
            raise damaged(self.replay.ledger.path, f"row {item} has no answer")
        verdicts, grades = await self.side_by_side.judged(reference.posed(text), made.samples, item)
        return replace(made, verdicts=verdicts, grades=grades)
