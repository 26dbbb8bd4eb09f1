"""The result of an evaluation by Arena-Hard, as a table for people and as JSON; and the tables that `show_result.py`
prints, read back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from refed_dspy.errors import one_line
from refed_dspy.plugins.evaluate.judged import Evaluated
from refed_dspy.text import NO_VALUE, counted

SAME_JUDGE = (
    "Scores of different judges do not compare, nor do those over another baseline: compare only arms that the same "
    "living judge has judged."
)
INTERVALS = "Intervals are Arena-Hard's own: 90%, from 100 bootstraps over games, with a seed of ours."
_TITLE = "##### Category:"
_ROW = re.compile(
    r"^\d+ +(?P<model>\S.*?) +(?P<score>-?\d+\.\d+) +\(-(?P<minus>-?\d+\.\d+) / \+(?P<plus>-?\d+\.\d+)\)$"
)
_HEADING = ("arm", "questions", "score %", "score % at equal style")


@dataclass(frozen=True)
class Score:
    """An arm's score over the baseline in percent, to one digit, with the 90% interval of the benchmark's code: the
    5% and 95% quantiles of its 100 bootstraps."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def read_table(printed: str, arms: Iterable[str]) -> dict[str, Score]:
    """Each arm's score in what the code printed. Raises ValueError, in one line, where one is not in it."""
    _, title, table = printed.rpartition(_TITLE)
    rows = [match for line in table.splitlines() if (match := _ROW.match(line.strip()))]
    scores = {row["model"]: _score(row) for row in rows}
    if lacking := [arm for arm in arms if arm not in scores]:
        raise ValueError(f"no score of {', '.join(lacking)}" if title else "no table")
    return {arm: scores[arm] for arm in arms}


def _score(row: re.Match[str]) -> Score:
    value = float(row["score"])
    return Score(value, round(value - float(row["minus"]), 1), round(value + float(row["plus"]), 1))


@dataclass(frozen=True)
class ScoredArm:
    """An arm as Arena-Hard's code scored it. `decided`: how many questions have a verdict in both orders; the others do
    not count. A score is None where there is none."""

    arm: str
    decided: int
    score: Score | None
    at_equal_style: Score | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Leaderboard(Evaluated):
    """An evaluation by Arena-Hard: as `Evaluated`, and the arms' scores. The judge is asked for two games for each
    question and arm."""

    category: str
    questions: int
    names: Sequence[str]
    """The arms'."""
    arms: Sequence[ScoredArm]
    """The best first."""
    unstyled: str
    """Why there is no score at equal style; empty where there is one."""

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

    def _notes(self) -> list[str]:
        said = ", ".join(self.judge_said[:3])
        judge = f"{self.judge} (which calls itself {said})" if said not in {"", self.judge} else self.judge
        told = [
            f"{self.benchmark}, {counted(self.questions, 'question')} of {self.category}, over {self.baseline} (50 %), "
            f"judged by {one_line(judge, 120)} until {self.date} (UTC)"
        ]
        told += [f"no score at equal style: {self.unstyled}"] if self.unstyled else []
        return [*told, INTERVALS, SAME_JUDGE]

    def _figures(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for each in self.arms:
            figures[f"{each.arm}/questions"] = each.decided
            for name, score in (("score", each.score), ("score_at_equal_style", each.at_equal_style)):
                if score is not None:
                    figures |= {f"{each.arm}/{name}": score.value, f"{each.arm}/{name}_low": score.low}
                    figures[f"{each.arm}/{name}_high"] = score.high
        return figures


def _cells(judged: ScoredArm) -> list[str]:
    scores = [NO_VALUE if score is None else str(score) for score in (judged.score, judged.at_equal_style)]
    return [one_line(judged.arm, 60), str(judged.decided), *scores]
