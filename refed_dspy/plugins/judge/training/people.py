"""What people said, as a judge learns it: each annotator's verdict or grade has an equal share. And what the judge says
of the same: paid work in a folder, under caps, asked once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from refed_dspy.data.pairs import GRADES, Pair, majority
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.plugins.compare.side_by_side import CONTEXT
from refed_dspy.programs import PairwiseJudge, RubricJudge, Verdict
from refed_dspy.programs.judges import Criterion, Graded, Judgements
from refed_dspy.records import digest
from refed_dspy.teachers.job import Job
from refed_dspy.teachers.work import CapSettings

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


# --- what the judge says of it


@dataclass(frozen=True)
class Questions:
    """What is asked: `pairs` of the judge to train, `again` those of them that the judge it began as is asked about,
    too, and `answers` to grade."""

    judge: PairwiseJudge
    pairs: Sequence[Pair]
    began_as: PairwiseJudge
    again: Sequence[Pair]
    answers: Sequence[GradedAnswer]

    def __len__(self) -> int:
        return len(self.pairs) + len(self.again) + len(self.answers)


@dataclass(frozen=True)
class Said:
    """The judge's answers: a pair's or an answer's id → what it said. `stopped`: the cap that ended it early."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    before: dict[str, Verdict] = field(default_factory=dict)
    """Those of the judge it began as, of the pairs that it was asked about."""
    grades: dict[str, Graded] = field(default_factory=dict)
    stopped: str = ""

    @property
    def judgements(self) -> Judgements:
        """Of pairs, by the judge to train."""
        return Judgements.of(self.verdicts.values())


def ask(asked: Questions, at: Job, caps: CapSettings) -> Said:
    """Ask all there is to ask under `caps`; what earlier starts paid for is not asked again. Raises as `Job.ask`."""
    said, grader = Said(), RubricJudge()

    def comparing(judge: PairwiseJudge, pair: Pair, into: dict[str, Verdict]) -> Callable[[], Awaitable[None]]:
        async def compare() -> None:
            criterion = criterion_of(pair)
            into[pair.id] = await judge.judge(pair.instruction, pair.answer_a, pair.answer_b, criterion, pair.id)

        return compare

    def grading(answer: GradedAnswer) -> Callable[[], Awaitable[None]]:
        async def grade() -> None:
            said.grades[answer.id] = await grader.judge(answer.text, answer.context, answer.criterion, answer.id)

        return grade

    questions = [
        *(comparing(asked.judge, pair, said.verdicts) for pair in asked.pairs),
        *(comparing(asked.began_as, pair, said.before) for pair in asked.again),
        *(grading(answer) for answer in asked.answers),
    ]
    at.ask(questions, _put, size=len(questions), caps=caps)
    return replace(said, stopped=at.stopped)


async def _put(question: Callable[[], Awaitable[None]]) -> None:
    await question()
