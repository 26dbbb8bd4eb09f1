"""Filters that ask a judge: the improved response must beat the plain one, a text must reach a grade, or a response
must meet the criteria of its reference."""

from __future__ import annotations

import dspy

from refed_dspy.errors import NO_REASON, PASSING, NoAnswer, NothingKept, Reason, one_line
from refed_dspy.filters.base import Decision, JudgeFilter
from refed_dspy.programs.asking import as_role
from refed_dspy.programs.judges import (
    OVERALL,
    SAME,
    Criterion,
    Judgements,
    PairwiseJudge,
    RubricJudge,
    answer_or_failure,
)
from refed_dspy.records import DataRow
from refed_dspy.signatures.judging import CriteriaCheck

NO_JUDGE = 20
"""A judge that decides none of the first rows, this many of them, is useless."""
ABSTAINED, FAILED = "judge abstained", "judge failed"
NO_CRITERIA = "no criteria"
"""The remark on a row whose reference has none."""


class _Judged(JudgeFilter):
    """Counts rows without a verdict, which are dropped: a judge that never decides ends the work."""

    abstained = failed = decided = 0
    _last = ""

    def recall(self, decision: Decision) -> None:
        if decision.reason in {ABSTAINED, FAILED}:
            self.abstained += decision.reason == ABSTAINED
            self.failed += decision.reason == FAILED
            self._last = decision.detail
        elif decision.reason != NO_CRITERIA:
            self.decided += decision.detail not in SAME.reasons

    def hopeless(self, least: int = 1) -> str:
        judged = Judgements(self.decided, self.abstained, self.failed, self._last)
        if judged.decided or judged.asked < least:
            return ""
        return (
            f"{self.name}: the judge decided none of the {judged.asked} rows it was asked about: {judged}, the "
            f"last because: {one_line(judged.why, 160)} — choose another judge and another folder"
        )

    def _check_useful(self) -> None:
        """Raises NothingKept where the judge decided none of NO_JUDGE rows or more: it gets no further call."""
        if message := self.hopeless(NO_JUDGE):
            raise NothingKept(message)

    def _undecided(self, stage: str, item: str, abstained: str, failed: Reason) -> Decision:
        """The decision on a row that has no verdict. Raises NoAnswer where the judge may answer another time."""
        if failed.kind in PASSING:
            unanswered = NoAnswer(stage, item, failed.detail)
            unanswered.recorded = True
            raise unanswered
        decision = Decision(False, FAILED if failed else ABSTAINED, None, one_line(failed or abstained, 300))
        self.recall(decision)
        return decision


class ImprovedWins(_Judged):
    """The paper's judge (its section 4): keeps a row where the improved response beats the plain one."""

    name = "judge"
    needs_plain = True

    def __init__(self, judge: PairwiseJudge, criterion: Criterion = OVERALL, margin: float = 0) -> None:
        self.judge, self.criterion, self.margin = judge, criterion, margin

    async def judged(self, row: DataRow, item: str) -> Decision:
        self._check_useful()
        with as_role("judge"):
            verdict = await self.judge.judge(row.posed, row.response, row.plain or "", self.criterion, item)
        preference = verdict.preference
        if preference is None:
            return self._undecided("pairwise_judge", item, verdict.abstained, verdict.failed)
        self.decided += verdict is not SAME  # equal texts are a tie without a question
        detail = one_line(verdict.reasons[0], 300) if verdict.reasons else ""
        if preference > self.margin:
            return Decision(True, "", preference, detail)
        reason = "improved loses" if preference < 0 else "tie" if preference == 0 else "wins by too little"
        return Decision(False, reason, preference, detail)


class Rubric(_Judged):
    """Keeps a row whose text a judge gives a grade of `at_least`, 1 to 5, by one criterion."""

    name = "rubric"

    def __init__(self, judge: RubricJudge, criterion: Criterion, of: str = "response", at_least: int = 4) -> None:
        self.judge, self.criterion, self.of, self.at_least = judge, criterion, of, at_least
        self.of_instruction = of == "instruction"

    async def judged(self, row: DataRow, item: str) -> Decision:
        self._check_useful()
        of_response = self.of == "response"
        text = row.response if of_response else row.instruction
        context = f"It answers this instruction:\n{row.posed}" if of_response else "It is an instruction."
        with as_role("judge"):
            graded = await self.judge.judge(text, context, self.criterion, item)
        if graded.grade is None:
            return self._undecided("rubric_judge", item, graded.reason, graded.failed)
        self.decided += 1
        kept = graded.grade >= self.at_least
        return Decision(kept, "" if kept else f"below {self.at_least}", graded.grade, one_line(graded.reason, 300))


class MeetsCriteria(_Judged):
    """Keeps a row whose response meets criteria of its reference with at least `threshold` of their weight, and a row
    whose reference has none."""

    name = "criteria"
    needs_criteria = True

    def __init__(self, threshold: float = 0.6) -> None:
        self.check, self.threshold = dspy.Predict(CriteriaCheck), threshold

    async def judged(self, row: DataRow, item: str) -> Decision:
        if not row.criteria:
            return Decision(True, remark=NO_CRITERIA)
        self._check_useful()
        asked = {"criteria": [each.criterion for each in row.criteria], "instruction": row.posed}
        with as_role("judge"):
            said = await answer_or_failure(self.check, "criteria_judge", item, **asked, answer=row.response)
        if isinstance(said, Reason):
            return self._undecided("criteria_judge", item, "", said)
        if len(said.met) != len(row.criteria):
            short = f"it answered {len(said.met)} of {len(row.criteria)} criteria"
            return self._undecided("criteria_judge", item, short, NO_REASON)
        self.decided += 1
        unmet = [each for each, met in zip(row.criteria, said.met, strict=True) if met == "no"]
        whole = sum(each.weight for each in row.criteria)
        share = (whole - sum(each.weight for each in unmet)) / whole
        kept, detail = share >= self.threshold, " ".join(each.criterion for each in unmet)
        return Decision(kept, "" if kept else f"meets less than {self.threshold:g}", share, detail)
