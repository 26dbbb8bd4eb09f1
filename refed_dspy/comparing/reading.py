"""A comparison's rows, read off its ledger: the programs are run again, and every question finds its paid answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import dspy

from refed_dspy.desk import LEAN
from refed_dspy.engine.ledger import Ledger
from refed_dspy.errors import RowError
from refed_dspy.paying import keys, remembered
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import Question, answering, offering
from refed_dspy.programs.judging import Graded
from refed_dspy.programs.side_by_side import Answered, SideBySide
from refed_dspy.records import Reference, Sample
from refed_dspy.teachers import Teacher


class Remembering:
    """The Answerer that asks nobody: what the ledger does not know has failed. `asked` are the keys of all it knew."""

    def __init__(self, ledger: Ledger, teacher: Teacher) -> None:
        self.ledger = ledger
        self._key = keys(teacher)
        self.asked: dict[str, str] = {}
        """Key → stage."""

    async def __call__(self, question: Question) -> dspy.Prediction:
        key = self._key(question)
        self.asked[key.digest] = key.stage
        if (known := remembered(self.ledger, question, key)) is not None:
            return known
        raise RowError(question.stage, question.item, "was not answered")


@dataclass(frozen=True)
class ComparedRow:
    """One instruction, what each program made of it, and what the judge said."""

    number: int
    reference: str
    feature: str
    instruction: str
    answered: Answered


@dataclass(frozen=True)
class Compared:
    """A comparison as its ledger holds it. Every mapping is by program."""

    rows: Sequence[ComparedRow]
    references: Sequence[Reference]
    """Those that gave rows."""
    seed_grades: Mapping[str, Graded]
    """Reference id → the grade of its own response."""
    asked: Mapping[str, Mapping[str, str]]
    """Key → stage of what it alone would have asked for these rows, proposals aside."""

    def missing(self, name: str) -> Counter[str]:
        """Kind of failure → rows without the program's answer."""
        return Counter(row.answered.failed[name] for row in self.rows if name in row.answered.failed)


_KEPT = """
SELECT i.id, i.reference, i.feature, i.text FROM samples s JOIN instructions i ON i.id = s.instruction ORDER BY s.seq
"""


async def read_compared(ledger: Ledger, program: SideBySide, models: Mapping[str, Teacher]) -> Compared:
    """The comparison so far."""
    references, reader = ledger.references(), _Reader(program, Remembering(ledger, models["teacher"]))
    judge = Remembering(ledger, models["judge"])
    rows = []
    with ExitStack() as stack:
        stack.enter_context(dspy.context(adapter=dspy.settings.adapter or SchemaAdapter(), **LEAN))
        stack.enter_context(answering(reader.memory))
        stack.enter_context(offering({"judge": (judge, None)}))
        for number, index, feature, text in ledger.db.execute(_KEPT).fetchall():
            answered = await reader.answered(index, references[index], text, str(number))
            rows.append(ComparedRow(number, references[index].id, feature, text, answered))
        opened = [references[index] for index in sorted(reader.learned)]
        grades = {ref.id: await program.grade_reference(ref) for ref in opened} if program.seed_graded else {}
    return Compared(rows, opened, grades, reader.asked)


class _Reader:
    """Runs the programs one by one, and notes what each asks."""

    def __init__(self, program: SideBySide, memory: Remembering) -> None:
        self.program, self.memory = program, memory
        self.asked: dict[str, dict[str, str]] = {name: {} for name in program.programs}
        self.learned: dict[int, dict[str, str]] = {}

    async def answered(self, index: int, reference: Reference, text: str, item: str) -> Answered:
        feedback = self.learned.setdefault(index, {})
        samples: dict[str, Sample] = {}
        failed: dict[str, str] = {}
        for name, one in self.program.programs.items():
            self.memory.asked = self.asked[name]
            try:
                if name not in feedback:
                    feedback[name] = await one.collect_response_feedback(reference)
                samples[name] = await one.respond(reference, feedback[name], text, item)
            except RowError as error:
                failed[name] = error.kind
        verdicts, grades = await self.program.judged(text, samples, item)
        return Answered(samples, failed, verdicts, grades)
