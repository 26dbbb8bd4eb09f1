"""Several programs on the same instructions, and a judge that compares their answers: the program of a comparison.

A run can run it like any other program: its instructions are those of one of the programs (`lead`), all others answer
them too, and the judge compares every answer with that of the program `against`, the baseline. Where two programs ask
the same question, the second one gets the first one's answer from the ledger: instructions and first responses are paid
for once, and every figure is paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy

from refed_dspy.errors import PASSING, ConfigError, NoAnswer, RowError
from refed_dspy.programs.asking import as_role
from refed_dspy.programs.judges import OVERALL, Graded, PairwiseJudge, RubricJudge, Verdict
from refed_dspy.programs.reference_level import SeedOnly
from refed_dspy.programs.synthesis import Proposal, SynthesisProgram
from refed_dspy.records import Reference, Sample

CONTEXT = "It answers this instruction:\n"


class SideBySide(dspy.Module):
    """Programs to compare, by name. `SeedOnly` is refused: it answers no new instruction."""

    def __init__(
        self,
        programs: Mapping[str, SynthesisProgram],
        against: str,
        judge: PairwiseJudge | None = None,
        *,
        graded: bool = True,
        seed_graded: bool = False,
    ) -> None:
        super().__init__()
        if any(isinstance(program, SeedOnly) for program in programs.values()):
            raise ConfigError("programs: the seed set answers no new instructions; remove it here")
        self.programs, self.against, self.graded = dict(programs), against, graded
        self.seed_graded = seed_graded
        self.judge = judge or PairwiseJudge()
        self.grader = self.judge.rubric or RubricJudge()
        self.lead = self.programs[against]
        self.features = self.lead.features
        self.instructions_per_feature = self.lead.instructions_per_feature
        self.final_stage = self.lead.final_stage
        others = len(programs) - 1
        plain = ["response_generation" in program.stage_names for program in programs.values()]  # is shared
        of_each = sum(program.calls_a_sample for program in programs.values())
        self.calls_a_sample = of_each - max(0, sum(plain) - 1) + 2 * others
        self.calls_a_sample += len(programs) * graded

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of all programs, the deepest last; a stage's depth is its greatest in any program."""
        depth: dict[str, int] = {}
        for program in self.programs.values():
            for position, name in enumerate(program.stage_names):
                depth[name] = max(position, depth.get(name, 0))
        return tuple(sorted(depth, key=depth.__getitem__))

    async def collect_features(self, reference: Reference) -> dict[str, str]:
        return await self.lead.collect_features(reference)

    async def collect_response_feedback(self, reference: Reference) -> dict[str, Any]:
        """Program → its feedback on the reference's response, or the final RowError that it failed with.

        One program after the other, so that equal questions are one call. Raises RowError where the baseline fails, and
        for a failure that is not final: then the reference waits for the next start.
        """
        if self.seed_graded:
            _final([await self.grade_reference(reference)], reference.id)
        feedback: dict[str, Any] = {}
        for name, program in self.programs.items():
            try:
                feedback[name] = await program.collect_response_feedback(reference)
            except RowError as error:
                if name == self.against or not error.final:
                    raise
                feedback[name] = error
        return feedback

    async def propose(
        self, reference: Reference, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal:
        return await self.lead.propose(reference, feature, description, taken, repetition)

    async def respond(
        self, reference: Reference, response_feedback: Mapping[str, Any], instruction: str, item: str = ""
    ) -> Sample:
        """Have every program answer and the judge compare. Returns the baseline's sample.

        `response_feedback` is the result of `collect_response_feedback`. If a program other than the baseline has no
        answer, it is not compared. Raises RowError where the baseline has none, and where the judge failed in passing:
        then the row waits for the next start.
        """
        samples: dict[str, Sample] = {}
        for name in (self.against, *(name for name in self.programs if name != self.against)):
            feedback = response_feedback[name]
            try:
                if isinstance(feedback, RowError):
                    raise feedback
                samples[name] = await self.programs[name].respond(reference, feedback, instruction, item)
            except RowError:  # it is in the ledger's failures; its program is not compared here
                if name == self.against:
                    raise
        verdicts, grades = await self.judged(reference.posed(instruction), samples, item)
        _final([*verdicts.values(), *grades.values()], item)
        return samples[self.against]

    async def judged(
        self, instruction: str, samples: Mapping[str, Sample], item: str
    ) -> tuple[dict[str, Verdict], dict[str, Graded]]:
        """The judge's verdicts and grades of the programs that have a sample."""
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
        """The grade of a reference's response: the only figure by which the seed set can be compared."""
        with as_role("judge"):
            return await self.grade(reference.response, reference.shown, reference.id)

    async def grade(self, response: str, instruction: str, item: str) -> Graded:
        return await self.grader.judge(response, f"{CONTEXT}{instruction}", OVERALL, item)


def _final(answers: Iterable[Verdict | Graded], item: str) -> None:
    """Raises NoAnswer where the judge failed in passing."""
    for answer in answers:
        if answer.failed.kind in PASSING:
            error = NoAnswer("judge", item, answer.failed.detail)
            error.recorded = True  # as the judge's call
            raise error
