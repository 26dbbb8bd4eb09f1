"""What Reference-Level Feedback is compared with (paper notes, section 2): the same instructions, other feedback.

Each is a program like `ReferenceLevelFeedback` and runs at scale like it. Where stages are the same they ask the same
questions, so in one ledger instructions and first responses are paid for once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dspy

from refed_dspy.concurrency import run_blocking
from refed_dspy.programs.asking import about
from refed_dspy.programs.reference_level import ReferenceLevelFeedback, as_reference
from refed_dspy.records import NO_ANALYSIS, NO_STRATEGY, Reference, Sample
from refed_dspy.signatures import DEFAULT_FEATURES
from refed_dspy.signatures.sample_level import SampleFeedback, SampleImprovement


class InstructionFeedbackOnly(ReferenceLevelFeedback):
    """Instructions from references, and the first response to each, which is not improved."""

    stage_names: tuple[str, ...] = ("instruction_feedback", "instruction_synthesis", "response_generation")
    final_stage = "response_generation"
    calls_a_sample = 1.2

    def __init__(
        self,
        features: Mapping[str, str] = DEFAULT_FEATURES,
        instructions_per_feature: int = 10,
        guidance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(features, instructions_per_feature)
        del self.response_feedback, self.response_improvement
        self.add_guidance(guidance or {})

    async def collect_response_feedback(self, reference: Reference) -> str:  # noqa: ARG002 — nothing is asked
        """Nothing: no feedback on the reference's response is used."""
        return ""

    async def respond(
        self,
        reference: Reference,
        response_feedback: str,  # noqa: ARG002 — there is none
        instruction: str,
        item: str = "",
    ) -> Sample:
        """Answer `instruction`. `improved_response`, which is what is trained on, is that answer."""
        response = await self.first_response(reference, instruction, item)
        return Sample(
            instruction=instruction,
            response=response,
            analysis=NO_ANALYSIS,
            implementation_strategy=NO_STRATEGY,
            improved_response=response,
        )


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
    calls_a_sample = 3.2

    def __init__(
        self,
        features: Mapping[str, str] = DEFAULT_FEATURES,
        instructions_per_feature: int = 10,
        guidance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(features, instructions_per_feature)
        self.sample_feedback = dspy.Predict(SampleFeedback)
        self.sample_improvement = dspy.Predict(SampleImprovement)
        self.add_guidance(guidance or {})

    async def respond(
        self,
        reference: Reference,
        response_feedback: str,  # noqa: ARG002 — there is none
        instruction: str,
        item: str = "",
    ) -> Sample:
        """Answer `instruction`, collect feedback on the answer, and improve it."""
        item = item or f"{reference.id}/{instruction[:40]}"
        response = await self.first_response(reference, instruction, item)
        with about("sample_feedback", item):
            feedback = await self.sample_feedback.acall(instruction=instruction, response=response)
        with about("sample_improvement", item):
            better = await self.sample_improvement.acall(
                instruction=instruction, response=response, response_feedback=feedback.response_feedback
            )
        return Sample(
            instruction=instruction,
            response=response,
            analysis=better.analysis,
            implementation_strategy=better.implementation_strategy,
            improved_response=better.improved_response,
        )


class SeedOnly(dspy.Module):
    """No feedback and no new instructions: the references are the data set. No question is asked."""

    async def aforward(self, reference: Reference | Mapping[str, str]) -> dspy.Prediction:
        """One sample: the reference."""
        pair = as_reference(reference)
        sample = Sample(
            instruction=pair.instruction,
            response=pair.response,
            analysis=NO_ANALYSIS,
            implementation_strategy=NO_STRATEGY,
            improved_response=pair.response,
        )
        return dspy.Prediction(feedback=None, samples=[sample], failures=[])

    def forward(self, *inputs: Any, **named: Any) -> dspy.Prediction:
        """`aforward`, for callers without an event loop."""
        return run_blocking(self.aforward(*inputs, **named))


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
