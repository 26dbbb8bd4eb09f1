"""Several programs on the same instructions, and a judge between them: what a comparison runs at scale.

It is itself a program that a run can run: its instructions are those of one of the programs (`lead`), each of the
others answers them too, and the judge compares every answer with that of the program it is measured `against`. Where
two programs ask the same, the ledger gives the second one the first one's answer: instructions and first responses are
paid for once, and every figure is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from refed_dspy.errors import ConfigError, RowError
from refed_dspy.programs.asking import as_role
from refed_dspy.programs.baselines import SeedOnly
from refed_dspy.programs.judges import OVERALL, Graded, PairwiseJudge, RubricJudge, Verdict
from refed_dspy.programs.reference_level import Proposal, ReferenceLevelFeedback
from refed_dspy.records import Reference, Sample

CONTEXT = "It answers this instruction:\n"


@dataclass(frozen=True, repr=False)
class Answered:
    """What came of one instruction: program → its sample, or why there is none; and what the judge said."""

    samples: Mapping[str, Sample]
    failed: Mapping[str, str]
    verdicts: Mapping[str, Verdict]
    """Program → the judge's verdict on (its response, that of the program it is compared with)."""
    grades: Mapping[str, Graded]
    """Program → its response's grade by overall quality."""


class SideBySide(dspy.Module):
    """Programs to compare, by name. One that writes nothing (`SeedOnly`) has no part in this."""

    def __init__(
        self,
        programs: Mapping[str, ReferenceLevelFeedback],
        against: str,
        judge: PairwiseJudge | None = None,
        *,
        graded: bool = True,
        seed_graded: bool = False,
    ) -> None:
        super().__init__()
        if any(isinstance(program, SeedOnly) for program in programs.values()):
            raise ConfigError("programs: the seed set answers no new instruction; leave it out here")
        self.programs, self.against, self.graded = dict(programs), against, graded
        self.seed_graded = seed_graded
        self.judge, self.grader = judge or PairwiseJudge(), RubricJudge()
        self.lead = self.programs[against]
        self.features = self.lead.features
        self.instructions_per_feature = self.lead.instructions_per_feature
        self.final_stage = self.lead.final_stage
        others = len(programs) - 1
        self.calls_a_sample = sum(p.calls_a_sample - 1 for p in programs.values()) + 1 + 2 * others
        self.calls_a_sample += len(programs) * graded

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Those of all programs, the deepest last: each as deep as it is in the program where it is deepest."""
        depth: dict[str, int] = {}
        for program in self.programs.values():
            for place, name in enumerate(program.stage_names):
                depth[name] = max(place, depth.get(name, 0))
        return tuple(sorted(depth, key=depth.__getitem__))

    async def collect_features(self, reference: Reference) -> dict[str, str]:
        return await self.lead.collect_features(reference)

    async def collect_response_feedback(self, reference: Reference) -> dict[str, Any]:
        """Program → what it learned of the reference's response, or the RowError that it failed with for good.

        One after the other: equal questions are one call. Raises RowError where the program compared with fails, and
        where one had no answer in passing: then the reference waits for the next start.
        """
        if self.seed_graded:
            await self.grade_reference(reference)
        learned: dict[str, Any] = {}
        for name, program in self.programs.items():
            try:
                learned[name] = await program.collect_response_feedback(reference)
            except RowError as error:
                if name == self.against or not error.final:
                    raise
                learned[name] = error
        return learned

    async def propose(
        self, reference: Reference, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal:
        return await self.lead.propose(reference, feature, description, taken, repetition)

    async def respond(
        self, reference: Reference, response_feedback: Mapping[str, Any], instruction: str, item: str = ""
    ) -> Sample:
        """Have every program answer and the judge compare. Returns the sample of the program compared with.

        Raises RowError where that one has none; without another's, there is less to compare.
        """
        answered = await self.answers(reference, response_feedback, instruction, item)
        return answered.samples[self.against]

    async def answers(
        self, reference: Reference, response_feedback: Mapping[str, Any], instruction: str, item: str
    ) -> Answered:
        """Everything that comes of one instruction. Raises RowError where the program compared with fails.

        `response_feedback` is what `collect_response_feedback` gave.
        """
        samples: dict[str, Sample] = {}
        failed: dict[str, str] = {}
        for name in (self.against, *(name for name in self.programs if name != self.against)):
            learned = response_feedback[name]
            try:
                if isinstance(learned, RowError):
                    raise learned
                samples[name] = await self.programs[name].respond(reference, learned, instruction, item)
            except RowError as error:  # it is in the ledger's failures, and its program is not compared here
                if name == self.against:
                    raise
                failed[name] = error.kind
        verdicts, grades = await self.judged(instruction, samples, item)
        return Answered(samples, failed, verdicts, grades)

    async def judged(
        self, instruction: str, samples: Mapping[str, Sample], item: str
    ) -> tuple[dict[str, Verdict], dict[str, Graded]]:
        """The judge's verdicts and grades, of the programs that have a sample."""
        base = samples[self.against].improved_response
        verdicts: dict[str, Verdict] = {}
        grades: dict[str, Graded] = {}
        with as_role("judge"):
            for name, sample in samples.items():
                text = sample.improved_response
                if name != self.against:
                    verdicts[name] = await self.judge.judge(instruction, text, base, OVERALL, item)
                if self.graded:
                    grades[name] = await self.grade(text, instruction, item)
        return verdicts, grades

    async def grade_reference(self, reference: Reference) -> Graded:
        """The grade of a reference's own response: the one figure that a data set of references can be compared by."""
        with as_role("judge"):
            return await self.grade(reference.response, reference.instruction, reference.id)

    async def grade(self, response: str, instruction: str, item: str) -> Graded:
        return await self.grader.judge(response, f"{CONTEXT}{instruction}", OVERALL, item)
