"""The filter that asks a judge about pairs: what the judge is shown."""

from __future__ import annotations

from typing import Any, cast

import pytest

from refed_dspy.filters.judge import ImprovedWins
from refed_dspy.programs.judges import PairwiseJudge, Verdict
from refed_dspy.records import DataRow, Reference
from tests.support.said import Said


class Says:
    """A judge with one verdict, which keeps what it was shown as the instruction."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict, self.shown = verdict, list[str]()

    async def judge(self, instruction: str, *_: Any) -> Verdict:
        self.shown.append(instruction)
        return self.verdict


def filter_by(judge: Says) -> ImprovedWins:
    return ImprovedWins(cast(PairwiseJudge, judge))


@pytest.mark.parametrize(
    "row",
    [
        DataRow(1, "Q", "better", "plain", reference=Reference(instruction="q", response="a", system="S")),
        DataRow(1, "Q", "better", "plain", system="S"),
    ],
)
async def test_the_judge_sees_the_system_prompt(said: Said, row: DataRow) -> None:
    judge = Says(Verdict(1, True, ("why",)))
    await filter_by(judge).judged(row, "1")
    said(judge.shown)
