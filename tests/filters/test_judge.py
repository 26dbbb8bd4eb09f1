"""The filter that asks a judge about pairs: what the judge is shown, and what is told of a row that it keeps."""

from __future__ import annotations

from typing import Any, cast

import pytest

from refed_dspy.data.formats import IN_ONE_ORDER
from refed_dspy.filters.judge import ImprovedWins
from refed_dspy.programs.judges import PairwiseJudge, Verdict
from refed_dspy.records import DataRow, Reference


class Says:
    """A judge with one verdict, which keeps what it was shown as the instruction."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict, self.shown = verdict, list[str]()

    async def judge(self, instruction: str, *_: Any) -> Verdict:
        self.shown.append(instruction)
        return self.verdict


def filter_by(judge: Says) -> ImprovedWins:
    return ImprovedWins(cast(PairwiseJudge, judge))


@pytest.mark.parametrize(("consistent", "remark"), [(True, ""), (False, IN_ONE_ORDER)])
async def test_a_win_in_one_order_is_told(consistent: bool, remark: str) -> None:
    decision = await filter_by(Says(Verdict(0.5, consistent, ("why",)))).judged(DataRow(1, "Q", "better", "plain"), "1")
    assert (decision.kept, decision.remark, decision.score) == (True, remark, 0.5)


@pytest.mark.parametrize(
    "row",
    [
        DataRow(1, "Q", "better", "plain", reference=Reference(instruction="q", response="a", system="S")),
        DataRow(1, "Q", "better", "plain", system="S"),
    ],
)
async def test_the_judge_sees_the_system_prompt(row: DataRow) -> None:
    judge = Says(Verdict(1, True, ("why",)))
    await filter_by(judge).judged(row, "1")
    assert judge.shown == ["System prompt:\nS\n\nInstruction:\nQ"]
