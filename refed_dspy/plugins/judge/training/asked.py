"""What the judge says of all pairs and graded answers: paid work in a folder, under caps, asked once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from refed_dspy.data.pairs import Pair
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.plugins.judge.training.people import GradedAnswer
from refed_dspy.programs import PairwiseJudge, RubricJudge, Verdict
from refed_dspy.programs.judges import Graded, Judgements
from refed_dspy.teachers.progress import NOBODY, Progress, Watch
from refed_dspy.teachers.row_jobs import for_each_row, row_job
from refed_dspy.teachers.work import Work


@dataclass(frozen=True)
class Asked:
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


async def ask(asked: Asked, folder: Path, work: Work, watch: Watch[Progress] = NOBODY) -> Said:
    """Ask all there is to ask; what earlier starts paid for is not asked again. Raises as `row_job`."""
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
    async with row_job(folder, work, watch) as session:
        await for_each_row(session, questions, _put, work.models["judge"].concurrency)
    return replace(said, stopped=session.cap_reached.cap) if session.cap_reached else said


async def _put(question: Callable[[], Awaitable[None]]) -> None:
    await question()
