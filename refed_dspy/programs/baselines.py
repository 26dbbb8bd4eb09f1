"""What Reference-Level Feedback is compared with (paper notes, section 2): the same instructions, other feedback.

Each is a program like `ReferenceLevelFeedback` and runs at scale like it. Where stages are the same they ask the same
questions, so in one ledger instructions and first responses are paid for once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from refed_dspy.programs.asking import about, ask
from refed_dspy.programs.program import Program
from refed_dspy.programs.reference_level import ReferenceLevelFeedback, as_reference, improved_sample
from refed_dspy.records import NO_ANALYSIS, NO_STRATEGY, Reference, Sample
from refed_dspy.signatures.sample_level import SampleFeedback, SampleImprovement


class InstructionFeedbackOnly(ReferenceLevelFeedback):
    """Instructions from references, and the first response to each, which is not improved."""

    stage_names: tuple[str, ...] = ("instruction_feedback", "instruction_synthesis", "response_generation")
    final_stage = "response_generation"
    calls_a_sample = 1

    async def collect_response_feedback(self, reference: Reference) -> str:  # noqa: ARG002 — nothing is asked
        """Nothing: no feedback on the reference's response is used."""
        return ""

    async def respond(self, reference: Reference, response_feedback: str, instruction: str, item: str = "") -> Sample:  # noqa: ARG002
        """Answer `instruction`. `improved_response`, which is what is trained on, is that answer."""
        response = await self.first_response(reference, instruction, item)
        return unimproved_sample(instruction, response)


class SampleLevelFeedback(InstructionFeedbackOnly):
    """The same instructions and first responses, each improved with feedback on that very response: three calls a
    sample, and one feedback for each sample where Reference-Level Feedback has one for each reference."""

    stage_names = (
        "instruction_feedback",
        "instruction_synthesis",
        "response_generation",
        "sample_feedback",
        "sample_improvement",
    )
    final_stage = "sample_improvement"
    calls_a_sample = 3
    signatures: Mapping[str, type[dspy.Signature]] = {
        **InstructionFeedbackOnly.signatures,
        "sample_feedback": SampleFeedback,
        "sample_improvement": SampleImprovement,
    }

    async def respond(self, reference: Reference, response_feedback: str, instruction: str, item: str = "") -> Sample:  # noqa: ARG002
        """Answer `instruction`, collect feedback on the answer, and improve it."""
        item = item or f"{reference.id}/{instruction[:40]}"
        response = await self.first_response(reference, instruction, item)
        with about("sample_feedback", item):
            feedback = await ask(self.sample_feedback, instruction=reference.posed(instruction), response=response)
        with about("sample_improvement", item):
            better = await ask(
                self.sample_improvement,
                instruction=reference.posed(instruction),
                response=response,
                response_feedback=feedback.response_feedback,
            )
        return improved_sample(instruction, response, better)


class SeedOnly(Program):
    """No feedback and no new instructions: the references are the data set. No question is asked."""

    async def aforward(self, reference: Reference | Mapping[str, str]) -> dspy.Prediction:
        """One sample: the reference."""
        pair = as_reference(reference)
        sample = unimproved_sample(pair.instruction, pair.response)
        return dspy.Prediction(feedback=None, samples=[sample], failures=[])


def unimproved_sample(instruction: str, response: str) -> Sample:
    """The sample of a response that no stage improves."""
    return Sample(
        instruction=instruction,
        response=response,
        analysis=NO_ANALYSIS,
        implementation_strategy=NO_STRATEGY,
        improved_response=response,
    )


METHODS: Mapping[str, type[ReferenceLevelFeedback]] = {
    "reference-level": ReferenceLevelFeedback,
    "sample-level": SampleLevelFeedback,
    "instruction-only": InstructionFeedbackOnly,
}
"""`method` in a config → its program."""


def program_class_of(state: Any) -> type[ReferenceLevelFeedback]:
    """The class in METHODS of a saved program's state (`read_state`): of those whose stages it all has, the one with
    most stages."""
    saved = set(state) if isinstance(state, Mapping) else set()
    fitting = [program for program in METHODS.values() if saved.issuperset(program.stage_names)]
    return max(fitting, key=lambda program: len(program.stage_names), default=ReferenceLevelFeedback)
