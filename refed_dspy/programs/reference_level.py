"""Reference-Level Feedback as one DSPy module, the paper's figure stage by stage, and the programs that it is compared
with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.programs.asking import about, again, ask, name_of
from refed_dspy.programs.criteria import usable
from refed_dspy.programs.program import AsyncProgram
from refed_dspy.programs.synthesis import Proposal, SynthesisProgram, as_reference, item_of
from refed_dspy.records import TAKEN_SHOWN, Criteria, Reference, Sample
from refed_dspy.signatures import (
    DEFAULT_FEATURES,
    InstructionSynthesis,
    ResponseFeedback,
    ResponseGeneration,
    ResponseImprovement,
    instruction_feedback,
)
from refed_dspy.signatures.stages import PlainAnswer, ReferenceCriteria, SampleFeedback, SampleImprovement
from refed_dspy.text import nearest

STAGES = (
    "instruction_feedback",
    "response_feedback",
    "instruction_synthesis",
    "response_generation",
    "response_improvement",
)

FEEDBACK_STAGES = ("instruction_feedback", "response_feedback")
CRITERIA_STAGES: Mapping[str, type[dspy.Signature]] = {
    "plain_answer": PlainAnswer,
    "reference_criteria": ReferenceCriteria,
}
"""The stages that criteria take, where a program has them."""


class ReferenceLevelFeedback(SynthesisProgram):
    """Collect feedback on a reference once; every sample of that reference is written with it.

    Args:
        features: name → description of what instruction feedback looks for. The paper's two by default.
        instructions_per_feature: how many instructions one synthesis call asks for (10 in the paper).
        guidance: stage → a sentence added to that stage's instructions.
        criteria: whether references are asked for criteria, too, in two further stages.

    Call it with one reference for all of its samples; a run calls the stages `collect`, `propose` and
    `respond` one by one over thousands of references. Both ask the same predictors.
    """

    stage_names: tuple[str, ...] = STAGES
    """Its stages, from the first to the deepest; each is the name of a predictor."""
    signatures: Mapping[str, type[dspy.Signature]] = {
        "response_feedback": ResponseFeedback,
        "instruction_synthesis": InstructionSynthesis,
        "response_generation": ResponseGeneration,
        "response_improvement": ResponseImprovement,
    }
    """Stage → what its predictor is asked. That of `instruction_feedback` follows from the features."""
    final_stage = "response_improvement"
    """The stage whose answer is the sample's final response."""
    calls_a_sample = 2
    """Calls of a sample, without those that are made once per reference."""

    def __init__(
        self,
        features: Mapping[str, str] = DEFAULT_FEATURES,
        instructions_per_feature: int = 10,
        guidance: Mapping[str, str] | None = None,
        criteria: bool = False,
    ) -> None:
        super().__init__()
        if not features:
            raise ConfigError("features: needs at least one")
        if instructions_per_feature < 1:
            raise ConfigError("instructions_per_feature: must be 1 or more")
        self.source: dict[str, str] = {}
        """Where its prompts came from (`load.remember_origin`); empty for a program that was not loaded."""
        self.features = dict(features)
        self.instructions_per_feature = instructions_per_feature
        signatures = {"instruction_feedback": instruction_feedback(features), **self.signatures}
        for stage in self.stage_names:
            setattr(self, stage, dspy.Predict(signatures[stage]))
        if criteria:
            self.add_criteria()
        self.add_guidance(guidance or {})

    def add_criteria(self) -> None:
        """Have references asked for criteria, after the feedback on them. Does nothing where they are already."""
        if self.criteria:
            return
        self.criteria = True
        for stage, signature in CRITERIA_STAGES.items():
            setattr(self, stage, dspy.Predict(signature))
        after = sum(stage in FEEDBACK_STAGES for stage in self.stage_names)  # these come first
        self.stage_names = (*self.stage_names[:after], *CRITERIA_STAGES, *self.stage_names[after:])

    def add_guidance(self, guidance: Mapping[str, str]) -> None:
        """Append the user's sentence to the instructions of each named stage, once; of a module there, to each
        predictor's.

        Raises:
            ConfigError: a stage that does not exist.
        """
        for stage, sentence in guidance.items():
            if stage not in self.stage_names:
                near = nearest(stage, self.stage_names)
                hint = f"did you mean {near}?" if near else f"the stages are {', '.join(self.stage_names)}"
                raise ConfigError(f"guidance: no stage {one_line(stage, 60)!r}; {hint}")
            for predictor in getattr(self, stage).predictors():
                instructions = predictor.signature.instructions
                if sentence not in instructions:
                    predictor.signature = predictor.signature.with_instructions(f"{instructions}\n\n{sentence}")

    async def collect_features(self, reference: Reference) -> dict[str, str]:
        """Feedback on the reference's instruction: feature → description."""
        with about("instruction_feedback", reference.id):
            answer = await ask(
                self.instruction_feedback, reference_instruction=reference.shown, reference_response=reference.response
            )
        return {name: answer[name] for name in self.features}

    async def collect_response_feedback(self, reference: Reference) -> str:
        """Feedback on the reference's response."""
        with about("response_feedback", reference.id):
            answer = await ask(
                self.response_feedback, reference_instruction=reference.shown, reference_response=reference.response
            )
        return str(answer.response_feedback)

    async def collect_criteria(self, reference: Reference) -> Criteria:
        """What sets the reference's response apart from a plain answer to its instruction, as criteria for other
        answers. None where fewer than two can be used."""
        if not self.criteria:
            return ()
        with about("plain_answer", reference.id):
            plain = await ask(self.plain_answer, instruction=reference.shown)
        with about("reference_criteria", reference.id):
            answer = await ask(
                self.reference_criteria,
                reference_instruction=reference.shown,
                reference_response=reference.response,
                plain_response=plain.response,
            )
        return usable(answer.criteria, reference)

    async def propose(
        self, reference: Reference, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal:
        """New instructions of `feature`. The newest `TAKEN_SHOWN` of `taken` are shown as taken."""
        with about("instruction_synthesis", f"{reference.id}/{feature}"):
            answer = await ask(
                self.instruction_synthesis,
                config=again(repetition),
                how_many=self.instructions_per_feature,
                reference_instruction=reference.shown,
                feature_name=feature.replace("_", " "),
                feature=description,
                taken=list(taken[-TAKEN_SHOWN:]),
            )
        written = [text.strip() for text in answer.new_instructions if text.strip()]
        instructions = tuple(written[: self.instructions_per_feature])
        return Proposal(instructions, surplus=len(written) - len(instructions))

    async def first_response(self, reference: Reference, instruction: str, item: str = "") -> str:
        """The answer to `instruction`, with the reference as an example."""
        with about("response_generation", item or item_of(reference, instruction)):
            answer = await ask(
                self.response_generation,
                example_instruction=reference.shown,
                example_response=reference.response,
                instruction=reference.posed(instruction),
            )
        return str(answer.response)

    async def respond(self, reference: Reference, response_feedback: str, instruction: str, item: str = "") -> Sample:
        """Answer `instruction`, then improve the answer with the feedback on the reference."""
        item = item or item_of(reference, instruction)
        response = await self.first_response(reference, instruction, item)
        with about("response_improvement", item):
            better = await ask(
                self.response_improvement,
                reference_feedback=response_feedback,
                instruction=reference.posed(instruction),
                response=response,
            )
        return improved_sample(instruction, response, better)


def improved_sample(instruction: str, response: str, better: dspy.Prediction) -> Sample:
    """The sample of a response that a stage has improved: `better` is that stage's answer."""
    return Sample(
        instruction=instruction,
        response=response,
        analysis=better.analysis,
        implementation_strategy=better.implementation_strategy,
        improved_response=better.improved_response,
    )


# --- what it is compared with (paper notes, section 2): the same instructions, other feedback. Where stages are the
# same they ask the same questions, so in one ledger instructions and first responses are paid for once.


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
        return Sample.of(instruction, response)


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
        item = item or item_of(reference, instruction)
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


class SeedOnly(AsyncProgram):
    """No feedback and no new instructions: the references are the data set. No question is asked."""

    async def aforward(self, reference: Reference | Mapping[str, str]) -> dspy.Prediction:
        """One sample: the reference."""
        pair = as_reference(reference)
        sample = Sample.of(pair.instruction, pair.response)
        return dspy.Prediction(feedback=None, samples=[sample], failures=[])


METHODS: Mapping[str, type[ReferenceLevelFeedback]] = {
    "reference-level": ReferenceLevelFeedback,
    "sample-level": SampleLevelFeedback,
    "instruction-only": InstructionFeedbackOnly,
}
"""`method` in a config → its program."""


# --- what stages write beyond what a sample has a place for: a subclass's `why`, a predictor of its own


_OWN = (ResponseFeedback, ReferenceCriteria, InstructionSynthesis, ResponseGeneration, ResponseImprovement)
_PLACED = {name for signature in _OWN for name in signature.output_fields}
_PLAIN = (str, int, float, bool)


def extra_outputs(program: dspy.Module) -> dict[str, dict[str, str]]:
    """Stage → output field → the name of its type: `str`, `int`, `float`, `bool`, or `json` for any other."""
    stages, features = getattr(program, "stage_names", ()), getattr(program, "features", {})
    found: dict[str, dict[str, str]] = {}
    for path, predictor in program.named_predictors():
        stage = place if (place := path.partition(".")[0]) in stages else name_of(path)
        for name, field in predictor.signature.output_fields.items():
            if name not in _PLACED and name not in features:
                kind: Any = field.annotation
                found.setdefault(stage, {})[name] = kind.__name__ if kind in _PLAIN else "json"
    return found
