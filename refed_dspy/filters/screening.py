"""The filters of a run, in their order: each new instruction and each sample is shown to them, and kept or dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from refed_dspy.data.rows import passed_rows
from refed_dspy.errors import NothingKept, one_line
from refed_dspy.filters.base import Decision, Filter, JudgeFilter, Step, TextFilter, checked, labels, normal
from refed_dspy.filters.judge import NO_JUDGE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Decided
from refed_dspy.records import DataRow, Sample

INSTRUCTIONS_IN_A_ROW, SAMPLES_IN_A_ROW = 100, 50
"""So many that are all dropped end a run: it would pay for ever. An instruction costs a twentieth of a sample."""
FAR = 15
"""Where few are kept anyway: so many times as many as it took, so far, for one that was kept. At a share p of kept
ones, 15 / p in a row are all dropped by chance with (1 - p)^(15 / p) < 4e-7."""
_ENDED = """
SELECT min(kept), filter, position, score, reason, detail FROM decisions WHERE filter IN ({})
GROUP BY instruction ORDER BY created, instruction
"""


class Screening:
    """Filters that look at the instruction alone are asked before a response is paid for, those that are free first;
    the others once there is a sample. The first that drops a row ends it."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self._early, self._late = list[tuple[int, str, TextFilter]](), list[tuple[int, str, Filter]]()
        self._asked = list[tuple[int, str, Filter]]()
        """Judges of the instruction."""
        for position, (label, step) in enumerate(zip(labels(steps), steps, strict=True)):
            one = step.filter
            if not isinstance(one, JudgeFilter) and one.of_instruction:
                self._early.append((position, label, one))
            elif one.of_instruction:
                self._asked.append((position, label, one))
            else:
                self._late.append((position, label, one))
        self._instructions = _Streak("instructions", INSTRUCTIONS_IN_A_ROW)
        self._samples = _Streak("samples", SAMPLES_IN_A_ROW)
        self._folder = "DIR"

    def identity(self) -> list[Any]:
        """What may not change between starts."""
        return [[label, dict(step.settings)] for label, step in zip(labels(self.steps), self.steps, strict=True)]

    def of_instruction(self, text: str) -> list[Decided]:
        """What is said of a new instruction, up to the first that drops it."""
        row, said = DataRow(0, text, ""), list[Decided]()
        for position, label, one in self._early:
            said.append(_decided(label, position, checked(one, label, row)))
            if not said[-1].kept:
                break
        if said:
            self._instructions.count(said[-1])
        return said

    async def of_question(self, text: str, item: str) -> list[Decided]:
        """What judges say of an instruction that is about to be answered, up to the first that drops it.

        Raises NoAnswer where a judge did not answer: the instruction stays open, and is asked about on the next start.
        """
        return await _through(self._asked, DataRow(0, text, ""), item)

    async def of_sample(self, sample: Sample, item: str) -> list[Decided]:
        """What is said of a sample, up to the first that drops it.

        Raises NoAnswer where a judge did not answer: the sample is undecided, and asked about on the next start.
        """
        row = DataRow(0, sample.instruction, sample.improved_response, sample.response)
        return await _through(self._late, row, item)

    def ended(self, said: Sequence[Decided]) -> None:
        """Take note of all that was said of one that was answered, or would have been."""
        if said:
            self._samples.count(said[-1])

    def check_fruitful(self) -> None:
        """Raises NothingKept where the filters drop whatever comes, or where a judge never decides."""
        for _, _, one in (*self._asked, *self._late):
            if isinstance(one, JudgeFilter) and (told := one.given_up(NO_JUDGE)):
                raise NothingKept(told)
        for streak in (self._instructions, self._samples):
            if told := streak.hopeless():
                raise NothingKept(
                    f"filters: {told}; this run pays for no more: loosen it, or take it out, in a new run with reuse: "
                    f"{self._folder}, which takes over what was paid for"
                )

    def restore(self, ledger: Ledger) -> None:
        """Take over what earlier starts decided: filters that compare rows know those that they kept.

        Raises NothingKept where earlier starts showed that nothing will be kept.
        """
        self._folder = one_line(ledger.path.parent, 200)
        for _, label, one in (*self._early, *self._asked, *self._late):
            if isinstance(one, JudgeFilter):
                for decision in _recorded(ledger, label):
                    one.recall(decision)
            else:
                for row in passed_rows(ledger, label):
                    one.remember(row)
        answered = [*self._asked, *self._late]
        for streak, of_these in ((self._instructions, self._early), (self._samples, answered)):
            for ended in _endings(ledger, [label for _, label, _ in of_these]):
                streak.count(ended)
        self.check_fruitful()


class _Streak:
    """How many were dropped since one was last kept, and how many that is beside what it took before."""

    def __init__(self, what: str, least: int) -> None:
        self._what, self._least = what, least
        self._before = self._kept = 0
        self._dropped: Counter[tuple[str, str]] = Counter()

    def count(self, last: Decided) -> None:
        """`last`: what was said last of one."""
        if not last.kept:
            self._dropped[last.filter, last.reason] += 1
            return
        self._before += self._dropped.total() + 1
        self._kept += 1
        self._dropped.clear()

    def hopeless(self) -> str:
        """What was dropped, where it is so much that none will be kept; else empty."""
        dropped = self._dropped.total()
        far = FAR * self._before / self._kept if self._kept else 0
        if dropped < max(self._least, far):
            return ""
        (name, reason), count = self._dropped.most_common(1)[0]
        return f"the last {dropped} {self._what} were all dropped, {count} of them by {name} ({one_line(reason, 60)})"


async def _through(filters: Sequence[tuple[int, str, Filter]], row: DataRow, item: str) -> list[Decided]:
    said = list[Decided]()
    for position, label, one in filters:
        if isinstance(one, JudgeFilter):
            decision = normal(await one.judged(row, item), label)
        else:
            decision = checked(one, label, row)
        said.append(_decided(label, position, decision))
        if not said[-1].kept:
            break
    return said


def _decided(label: str, position: int, said: Decision) -> Decided:
    return Decided(label, position, said.kept, said.score, said.reason, said.detail)


def _recorded(ledger: Ledger, label: str) -> Iterator[Decision]:
    for kept, score, reason, detail in ledger.db.execute(
        "SELECT kept, score, reason, detail FROM decisions WHERE filter=? ORDER BY created, instruction", (label,)
    ):
        yield Decision(bool(kept), reason, score, detail)


def _endings(ledger: Ledger, of_these: Sequence[str]) -> Iterator[Decided]:
    """What the filters `of_these` said last of each row, in their order: the drop where there was one."""
    if of_these:
        for kept, name, *rest in ledger.db.execute(_ENDED.format(",".join("?" * len(of_these))), of_these):
            position, score, reason, detail = rest
            yield Decided(name, position, bool(kept), score, reason, detail)
