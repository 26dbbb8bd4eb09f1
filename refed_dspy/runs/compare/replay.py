"""A comparison's rows, read off its ledger: the programs are run again, and every question finds its paid answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import dspy

from refed_dspy.errors import NoAnswer, RowError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import Question, answered_by, with_roles
from refed_dspy.programs.judges import Graded
from refed_dspy.programs.side_by_side import Answered, SideBySide
from refed_dspy.records import Reference
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.recorded import keys, remembered
from refed_dspy.teachers.session import LEAN


class NotAsked(RowError):
    kind = "not asked"


class ReplayAnswerer:
    """The Answerer that asks nobody. `asked` are the keys of what was asked once, be it that it failed."""

    def __init__(self, ledger: Ledger, teacher: Teacher) -> None:
        self.ledger = ledger
        self._key = keys(teacher)
        self.asked: dict[str, str] = {}
        """Key → stage."""

    async def __call__(self, question: Question) -> dspy.Prediction:
        key = self._key(question)
        try:
            if (known := remembered(self.ledger, question, key)) is not None:
                self.asked[key.digest] = key.stage
                return known
        except RowError:
            self.asked[key.digest] = key.stage
            raise
        row = self.ledger.db.execute("SELECT reason FROM failures WHERE key=?", (key.digest,)).fetchone()
        if row is None:
            raise NotAsked(question.stage, question.item, "was never asked")
        self.asked[key.digest] = key.stage
        # Not as NoConnection: that says something of the endpoint, which nobody asks here.
        raise NoAnswer(question.stage, question.item, row[0])


@dataclass(frozen=True, repr=False)  # asyncio writes the repr of what a task gives: of all rows, a second's work
class ComparedRow:
    """One instruction, what each program made of it, and what the judge said."""

    number: int
    reference: str
    feature: str
    instruction: str
    answered: Answered


@dataclass(frozen=True, repr=False)
class Compared:
    """A comparison as its ledger holds it. Every mapping is by program."""

    rows: Sequence[ComparedRow]
    references: Sequence[Reference]
    """Those that gave rows."""
    seed_grades: Mapping[str, Graded]
    """Reference id → the grade of its own response."""
    asked: Mapping[str, Mapping[str, str]]
    """Key → stage of what it alone would have asked, the writing of the instructions aside: of every reference that
    was opened, and of every instruction that was tried, also where no row came of it."""

    def missing(self, name: str) -> Counter[str]:
        """Kind of failure → rows without the program's answer."""
        return Counter(row.answered.failed[name] for row in self.rows if name in row.answered.failed)


_OPENED = "SELECT position FROM refs r WHERE EXISTS (SELECT 1 FROM calls WHERE item = r.id) ORDER BY position"
_KEPT = """
SELECT i.id, i.reference, i.feature, i.text FROM samples s JOIN instructions i ON i.id = s.instruction ORDER BY s.seq
"""
_IN_VAIN = """
SELECT i.id, i.reference, i.text FROM instructions i
WHERE NOT EXISTS (SELECT 1 FROM samples s WHERE s.instruction = i.id)
  AND EXISTS (SELECT 1 FROM calls WHERE item = CAST(i.id AS TEXT)) ORDER BY i.id
"""


async def read_compared(ledger: Ledger, program: SideBySide, models: Mapping[str, Teacher]) -> Compared:
    """The comparison so far."""
    references, reader = ledger.references(), _Reader(program, ReplayAnswerer(ledger, models["teacher"]))
    judge = ReplayAnswerer(ledger, models["judge"])
    rows = []
    with ExitStack() as stack:
        stack.enter_context(dspy.context(adapter=dspy.settings.adapter or SchemaAdapter(), **LEAN))
        stack.enter_context(answered_by(reader.memory))
        stack.enter_context(with_roles({"judge": (judge, None)}))
        for (index,) in ledger.db.execute(_OPENED).fetchall():
            await reader.learn(index, references[index])
        kept = ledger.db.execute(_KEPT).fetchall()
        for number, index, feature, text in kept:
            answered = await reader.answered(index, references[index], text, str(number))
            rows.append(ComparedRow(number, references[index].id, feature, text, answered))
        for number, index, text in ledger.db.execute(_IN_VAIN).fetchall():
            await reader.written(index, references[index], text, str(number))
        gave = [references[index] for index in sorted({row[1] for row in kept})]
        grades = {ref.id: await program.grade_reference(ref) for ref in gave} if program.seed_graded else {}
    return Compared(rows, gave, grades, reader.asked)


class _Reader:
    """Runs the programs one by one, and notes what each asks."""

    def __init__(self, program: SideBySide, memory: ReplayAnswerer) -> None:
        self.program, self.memory = program, memory
        self.asked: dict[str, dict[str, str]] = {name: {} for name in program.programs}
        self.learned: dict[int, dict[str, Any]] = {}
        """Reference → program → its feedback on the response, or the RowError that it ended with."""

    async def learn(self, index: int, reference: Reference) -> None:
        """What each program learned of the reference's response."""
        learned = self.learned.setdefault(index, {})
        for name, one in self.program.programs.items():
            self.memory.asked = self.asked[name]
            try:
                learned[name] = await one.collect_response_feedback(reference)
            except RowError as error:
                learned[name] = error

    async def written(self, index: int, reference: Reference, text: str, item: str) -> Answered:
        """What each program made of an instruction, unjudged."""
        if index not in self.learned:
            await self.learn(index, reference)
        samples, failed = {}, {}
        for name, one in self.program.programs.items():
            self.memory.asked = self.asked[name]
            learned = self.learned[index][name]
            try:
                if isinstance(learned, RowError):
                    raise learned
                samples[name] = await one.respond(reference, learned, text, item)
            except RowError as error:
                failed[name] = error.kind
        return Answered(samples, failed, {}, {})

    async def answered(self, index: int, reference: Reference, text: str, item: str) -> Answered:
        """What each program made of an instruction, and what the judge said of it."""
        made = await self.written(index, reference, text, item)
        verdicts, grades = await self.program.judged(text, made.samples, item)
        return replace(made, verdicts=verdicts, grades=grades)
