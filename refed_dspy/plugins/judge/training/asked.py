"""What the judge says of all pairs and graded answers: paid work in a folder, under caps, asked once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from refed_dspy.data.pairs import Pair
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.plugins.judge.training.people import GradedAnswer
from refed_dspy.programs import PairwiseJudge, RubricJudge, Verdict
from refed_dspy.programs.judges import Graded, Judgements
from refed_dspy.teachers.job import Job
from refed_dspy.teachers.work import CapSettings


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


def ask(asked: Asked, at: Job, caps: CapSettings) -> Said:
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
