"""What people said, as a judge learns it: each annotator's verdict or grade has an equal share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from refed_dspy.data.pairs import GRADES, Pair, majority
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.plugins.compare.side_by_side import CONTEXT
from refed_dspy.programs.judges import Criterion
from refed_dspy.records import digest

LEVELS = (-1.0, 0.0, 1.0)
"""A pair's verdicts, the level of B's being better first."""
Shares = tuple[float, ...]


@dataclass(frozen=True)
class GradedAnswer:
    """One answer, and people's grades of it by one criterion, at least one. `system`: who wrote it; "" if unknown."""

    instruction: str
    text: str
    criterion: Criterion
    system: str
    grades: tuple[int, ...]

    @property
    def id(self) -> str:
        """Twelve hex digits of what a judge sees."""
        return digest([self.instruction, self.text, self.criterion.name, self.criterion.description])[:12]

    @property
    def context(self) -> str:
        """What a judge is told of it, as it is in filters and comparisons."""
        return f"{CONTEXT}{self.instruction}"

    @property
    def shares(self) -> Shares:
        """The share of each grade, the worst first."""
        return tuple(self.grades.count(grade) / len(self.grades) for grade in GRADES)

    @property
    def mean(self) -> float:
        return sum(self.grades) / len(self.grades)


def shares_of(pair: Pair) -> Shares:
    """The share of each of LEVELS among the annotators who could tell. A verdict that is not their majority's was
    settled by hand, and is the only one."""
    said = [each.verdict for each in pair.annotations.values() if each.verdict is not None]
    if not said or majority(pair.annotations.values()) != pair.verdict:
        said = [pair.verdict]
    return tuple(said.count(level) / len(said) for level in LEVELS)


def graded_answers(pairs: Iterable[Pair]) -> list[GradedAnswer]:
    """Each answer that somebody graded, once for each criterion, as they first come. An answer that is in several pairs
    has the grades of all. Empty answers are left out: there is nothing to show a judge."""
    grades: defaultdict[tuple[str, str, Criterion, str], list[int]] = defaultdict(list)
    for pair in pairs:
        criterion = criterion_of(pair)
        for said in pair.annotations.values():
            sides = (pair.answer_a, pair.system_a, said.grade_a), (pair.answer_b, pair.system_b, said.grade_b)
            for text, system, grade in sides:
                if grade is not None and text.strip():
                    grades[pair.instruction, text, criterion, system].append(grade)
    return [
        GradedAnswer(instruction, text, criterion, system, tuple(given))
        for (instruction, text, criterion, system), given in grades.items()
    ]


def annotators(pairs: Sequence[Pair]) -> int:
    """How many people's names the verdicts carry; 0 where none is known."""
    return len({name for pair in pairs for name in pair.annotations})
