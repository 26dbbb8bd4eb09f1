"""Synthesis with a reference's feedback: instructions, responses, improved responses (paper, section 3.2)."""

from __future__ import annotations

from typing import Annotated

import dspy

from refed_dspy.records import Analysis, AtMost, ImplementationStrategy, Prose

# A longer instruction is a document, and a longer list does not end by itself. `how_many` is what is asked for.
NewInstruction = Annotated[str, AtMost(1_999)]
NewInstructions = Annotated[list[NewInstruction], AtMost(100)]


class InstructionSynthesis(dspy.Signature):
    """Write new instructions for a data set that teaches a model to follow instructions well.

    Each is about as complex and as long as the reference instruction, of the kind that the feature describes, and
    something a real person would ask. Make them differ from one another, from the reference and from those taken in
    topic, wording and form. Each must be complete in itself: include any text, data or figures that it speaks of, and
    never mention the reference or the feature. Write the tasks only, without answers or numbering.
    """

    # A round asks once for each feature, and `taken` changes only between rounds: so a round's calls share the inputs
    # before the feature.
    reference_instruction: str = dspy.InputField()
    taken: list[str] = dspy.InputField()
    feature_name: str = dspy.InputField()
    feature: str = dspy.InputField()
    how_many: int = dspy.InputField()
    new_instructions: NewInstructions = dspy.OutputField(desc="exactly how_many")


class ResponseGeneration(dspy.Signature):
    """Answer the instruction as an expert would: correctly, completely, in the form that suits it.

    The example, on another topic, shows the care to take.
    """

    example_instruction: str = dspy.InputField()
    example_response: str = dspy.InputField()
    instruction: str = dspy.InputField()
    response: Prose = dspy.OutputField()


class ResponseImprovement(dspy.Signature):
    """Improve the response. The feedback is about a similar but different one: use only what applies.

    Note what is good, what could be better, which feedback applies; plan changes; rewrite it in full. It answers by
    itself, keeps what was good, mentions no feedback or earlier response.
    """

    reference_feedback: str = dspy.InputField()
    instruction: str = dspy.InputField()
    response: str = dspy.InputField()
    analysis: Analysis = dspy.OutputField(desc="one to three short notes a list")
    implementation_strategy: ImplementationStrategy = dspy.OutputField(desc="same; why in a sentence")
    improved_response: Prose = dspy.OutputField()
