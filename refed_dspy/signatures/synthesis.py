"""What is written with it: instructions, responses, improved responses (paper, section 3.2)."""

from __future__ import annotations

from typing import Annotated

import dspy

from refed_dspy.records import Analysis, AtMost, ImplementationStrategy, Prose

# An instruction past this is a document; a list past this is a loop. What is asked for is `how_many`.
NewInstruction = Annotated[str, AtMost(1_999)]
NewInstructions = Annotated[list[NewInstruction], AtMost(100)]


class InstructionSynthesis(dspy.Signature):
    """You write new instructions for a data set that teaches a model to follow instructions well.

    Write exactly the number asked for. Each is a task of its own, about as complex and as long as the
    reference instruction, of the kind that the feature describes, and something a real person would ask.
    Make them differ from one another and from the reference in topic, wording and form. Each must be
    complete in itself: include any text, data or figures that it speaks of, and never mention the reference or
    the feature. Write the tasks only, without answers or numbering. When some are listed as taken, write others.
    """

    how_many: int = dspy.InputField(desc="how many instructions to write")
    reference_instruction: str = dspy.InputField(desc="the example for complexity and length")
    feature_name: str = dspy.InputField(desc="what the feature describes")
    feature: str = dspy.InputField(desc="the feature that every new instruction shares with the reference")
    taken: list[str] = dspy.InputField(desc="instructions already written for this reference")
    new_instructions: NewInstructions = dspy.OutputField(desc="the new instructions")


class ResponseGeneration(dspy.Signature):
    """You answer instructions as well as an expert would.

    The example shows the quality and the care to aim for; its topic differs from yours. Answer the new
    instruction itself: correctly, completely, and in the form that suits it.
    """

    example_instruction: str = dspy.InputField(desc="an example")
    example_response: str = dspy.InputField(desc="its excellent response")
    instruction: str = dspy.InputField(desc="the instruction to answer")
    response: Prose = dspy.OutputField(desc="your answer to the instruction")


class ResponseImprovement(dspy.Signature):
    """You improve responses.

    The feedback was written about a similar but different instruction and response. Use only what applies
    here. First note what is good in the response, what could be better, and which parts of the feedback
    apply; then decide what to change and why; then write the improved response in full. It must answer the
    instruction by itself, keep what was good, and never mention the feedback or the earlier response.
    """

    reference_feedback: str = dspy.InputField(desc="feedback on a similar but different response")
    instruction: str = dspy.InputField(desc="the instruction")
    response: str = dspy.InputField(desc="the response to improve")
    analysis: Analysis = dspy.OutputField(
        desc="what is good, what could be better, which feedback applies; short notes"
    )
    implementation_strategy: ImplementationStrategy = dspy.OutputField(desc="what to change, and why; short notes")
    improved_response: Prose = dspy.OutputField(desc="the improved response, complete and ready to use")
