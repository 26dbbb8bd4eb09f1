"""The result of an evaluation by Arena-Hard, as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.export import InFolder
from refed_dspy.errors import one_line
from refed_dspy.filters.overlap import Contamination
from refed_dspy.ledger.spending import Spent
from refed_dspy.plugins.evaluate.arena_hard.leaderboard import Score
from refed_dspy.plugins.evaluate.facts import facts_of, overlap_lines
from refed_dspy.text import NO_VALUE, counted, table_lines

SAME_JUDGE = (
    "Scores of different judges do not compare, nor do those over another baseline: compare only arms that the same "
    "living judge has judged."
)
INTERVALS = "Intervals are Arena-Hard's own: 90%, from 100 bootstraps over games, with a seed of ours."


@dataclass(frozen=True)
class Judged:
    """An arm as Arena-Hard's code scored it. `decided`: how many questions have a verdict in both orders; the others do
    not count. A score is None where there is none."""

    arm: str
    decided: int
    score: Score | None
    at_equal_style: Score | None


@dataclass(frozen=True, repr=False)
class Leaderboard(InFolder):
    """An evaluation, written to `out`. `stopped`: the cap that ended it, or empty; then there are no scores."""

    out: Path
    benchmark: str
    category: str
    baseline: str
    judge: str
    judge_said: Sequence[str]
    """What the judge's endpoint called itself, in the order of its answers."""
    date: str
    """When the last answer came, in UTC: a judge may be another one later."""
    questions: int
    names: Sequence[str]
    """The arms'."""
    asked: int
    """How many answers of the judge's are in the folder: two games for each question and arm, and those of earlier
    starts."""
    arms: Sequence[Judged]
    """The best first."""
    unstyled: str
    """Why there is no score at equal style; empty where there is one."""
    overlap: Contamination | None
    """None where no training data was named."""
    used: Spent
    simulated: str = ""
    """What is to be known where the simulated teacher judged; else empty."""
    stopped: str = ""

    @property
    def problem(self) -> str:
        """In one line, that questions have no verdict; empty where all do, or a cap ended it."""
        missing = {each.arm: self.questions - each.decided for each in self.arms if each.decided < self.questions}
        if self.stopped or not missing:
            return ""
        each = ", ".join(f"{count} of {one_line(arm, 40)}" for arm, count in missing.items())
        return (
            f"questions without a verdict in both orders: {each}, of {self.questions}; scores are of the others alone; "
            "the same command asks again where that may help"
        )

    def _describe(self) -> str:
        if self.stopped:
            return self._count()
        best = self.arms[0]
        return f"{best.arm} scores {best.score} % over {self.baseline}, judged by {self.judge}"

    def _count(self) -> str:
        games = 2 * self.questions * len(self.names)
        return f"{counted(self.asked, 'answer')} of {self.judge} so far, for {counted(games, 'game')}; {self.used}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return _HEADING, map(_cells, self.arms)

    def notes(self) -> list[str]:
        """What must be known beside the scores, in a line each."""
        said = ", ".join(self.judge_said[:3])
        judge = f"{self.judge} (which calls itself {said})" if said not in {"", self.judge} else self.judge
        told = [self.simulated] if self.simulated else []
        told += [
            f"{self.benchmark}, {counted(self.questions, 'question')} of {self.category}, over {self.baseline} (50 %), "
            f"judged by {one_line(judge, 120)} until {self.date} (UTC)"
        ]
        told += [f"no score at equal style: {self.unstyled}"] if self.unstyled else []
        return [*told, INTERVALS, SAME_JUDGE, *overlap_lines(self.overlap)]

    def lines(self) -> list[str]:
        """The table, and what must be known beside it."""
        if self.stopped:
            return [self._count()]
        return [*table_lines([_HEADING, *map(_cells, self.arms)]), "", *self.notes(), f"paid: {self.used}"]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types: see `facts_of`."""
        return facts_of(self, self._figures())

    def _figures(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for each in self.arms:
            figures[f"{each.arm}/questions"] = each.decided
            for name, score in (("score", each.score), ("score_at_equal_style", each.at_equal_style)):
                if score is not None:
                    figures |= {f"{each.arm}/{name}": score.value, f"{each.arm}/{name}_low": score.low}
                    figures[f"{each.arm}/{name}_high"] = score.high
        return figures


_HEADING = ("arm", "questions", "score %", "score % at equal style")


def _cells(judged: Judged) -> list[str]:
    scores = [NO_VALUE if score is None else str(score) for score in (judged.score, judged.at_equal_style)]
    return [one_line(judged.arm, 60), str(judged.decided), *scores]
