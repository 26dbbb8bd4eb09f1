"""Filters that ask a judge: the improved response must beat the plain one, or a text must reach a grade."""

from __future__ import annotations

from refed_dspy.data.table import DataRow
from refed_dspy.errors import RunStopped, one_line
from refed_dspy.filters.decision import Decision, JudgeFilter
from refed_dspy.programs.asking import asking
from refed_dspy.programs.judging import OVERALL, Criterion, PairwiseJudge, RubricJudge

NO_JUDGE = 20
"""A judge that abstains on so many rows from the first on is none."""
ABSTAINED = "judge abstained"


class _Judged(JudgeFilter):
    """Counts abstentions: a row that nothing is known of is not kept, and a judge that never decides ends the work."""

    def __init__(self) -> None:
        self.abstained = 0
        self.decided = 0

    def _abstention(self, why: str) -> Decision:
        """Raises RunStopped where the judge has decided nothing so far."""
        self.abstained += 1
        if not self.decided and self.abstained >= NO_JUDGE:
            raise RunStopped(
                f"{self.name}: the judge abstained on each of the first {self.abstained} rows, on the last because: "
                f"{one_line(why, 160)} — name another judge"
            )
        return Decision(False, ABSTAINED, None, why)


class ImprovedWins(_Judged):
    """The paper's judge (its section 4): keeps a row where the improved response beats the plain one."""

    name = "judge"
    needs_plain = True

    def __init__(self, judge: PairwiseJudge, criterion: Criterion = OVERALL, margin: float = 0) -> None:
        super().__init__()
        self.judge, self.criterion, self.margin = judge, criterion, margin

    async def judged(self, row: DataRow, item: str) -> Decision:
        with asking("judge"):
            said = await self.judge.judge(row.instruction, row.response, row.plain or "", self.criterion, item)
        if said.preference is None:
            return self._abstention(said.abstained)
        self.decided += 1
        detail = one_line(said.reasons[0], 300) if said.reasons else ""
        if said.preference > self.margin:
            return Decision(True, "", said.preference, detail)
        reason = "improved loses" if said.preference < 0 else "tie" if said.preference == 0 else "wins by too little"
        return Decision(False, reason, said.preference, detail)


class Rubric(_Judged):
    """Keeps a row whose text a judge gives a grade of `at_least`, 1 to 5, by one criterion."""

    name = "rubric"

    def __init__(self, judge: RubricJudge, criterion: Criterion, of: str = "response", at_least: int = 4) -> None:
        super().__init__()
        self.judge, self.criterion, self.of, self.at_least = judge, criterion, of, at_least

    async def judged(self, row: DataRow, item: str) -> Decision:
        of_response = self.of == "response"
        text = row.response if of_response else row.instruction
        context = f"It answers this instruction:\n{row.instruction}" if of_response else "It is an instruction."
        with asking("judge"):
            said = await self.judge.judge(text, context, self.criterion, item)
        if said.grade is None:
            return self._abstention(said.reason)
        self.decided += 1
        kept = said.grade >= self.at_least
        return Decision(kept, "" if kept else f"below {self.at_least}", said.grade, one_line(said.reason, 300))
