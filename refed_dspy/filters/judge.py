"""Filters that ask a judge: the improved response must beat the plain one, or a text must reach a grade."""

from __future__ import annotations

from refed_dspy.errors import NoAnswer, NothingKept, one_line
from refed_dspy.filters.base import Decision, JudgeFilter
from refed_dspy.programs.asking import as_role
from refed_dspy.programs.judges import OVERALL, SAME, Criterion, PairwiseJudge, RubricJudge
from refed_dspy.records import DataRow

NO_JUDGE = 20
"""A judge that abstains on so many rows from the first on is none."""
ABSTAINED = "judge abstained"


class _Judged(JudgeFilter):
    """Counts abstentions: a row that nothing is known of is not kept, and a judge that never decides ends the work."""

    def __init__(self) -> None:
        self.abstained = 0
        self.decided = 0
        self._last = ""

    def recall(self, decision: Decision) -> None:
        """Take note of a decision of an earlier start."""
        if decision.reason == ABSTAINED:
            self.abstained += 1
            self._last = decision.detail
        else:
            self.decided += decision.detail not in SAME.reasons

    def given_up(self, least: int = 1) -> str:
        """Why this judge is none, having abstained on `least` rows or more and never decided; else empty."""
        if self.decided or self.abstained < least:
            return ""
        return (
            f"{self.name}: the judge abstained on each of the {self.abstained} rows that it was asked about, on the "
            f"last because: {one_line(self._last, 160)} — name another judge, and another folder"
        )

    def _check(self) -> None:
        """Raises NothingKept where it has abstained on all of many rows: it is asked about no further one."""
        if told := self.given_up(NO_JUDGE):
            raise NothingKept(told)

    def _abstention(self, stage: str, item: str, why: str) -> Decision:
        """Raises NoAnswer where it may answer another time."""
        kind = f"{NoAnswer.kind}: "
        if why.startswith(kind):
            raise NoAnswer(stage, item, why.removeprefix(kind))
        said = Decision(False, ABSTAINED, None, one_line(why, 300))
        self.recall(said)
        return said


class ImprovedWins(_Judged):
    """The paper's judge (its section 4): keeps a row where the improved response beats the plain one."""

    name = "judge"
    needs_plain = True

    def __init__(self, judge: PairwiseJudge, criterion: Criterion = OVERALL, margin: float = 0) -> None:
        super().__init__()
        self.judge, self.criterion, self.margin = judge, criterion, margin

    async def judged(self, row: DataRow, item: str) -> Decision:
        self._check()
        with as_role("judge"):
            said = await self.judge.judge(row.instruction, row.response, row.plain or "", self.criterion, item)
        if said.preference is None:
            return self._abstention("pairwise_judge", item, said.abstained)
        self.decided += said is not SAME  # equal texts are a tie without a question
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
        self.of_instruction = of == "instruction"

    async def judged(self, row: DataRow, item: str) -> Decision:
        self._check()
        of_response = self.of == "response"
        text = row.response if of_response else row.instruction
        context = f"It answers this instruction:\n{row.instruction}" if of_response else "It is an instruction."
        with as_role("judge"):
            said = await self.judge.judge(text, context, self.criterion, item)
        if said.grade is None:
            return self._abstention("rubric_judge", item, said.reason)
        self.decided += 1
        kept = said.grade >= self.at_least
        return Decision(kept, "" if kept else f"below {self.at_least}", said.grade, one_line(said.reason, 300))
