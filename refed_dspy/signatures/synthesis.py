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

    - Each is about as complex and as long as the reference instruction, of the kind that the feature describes, and as
      clear about what is wanted.
    - Each is practical: something that a real person would ask, and that can be answered well in writing.
    - Each is complete in itself: it includes any text, data or figures that it speaks of, and never mentions the
      reference or the feature.
    - They differ from one another, from the reference and from those taken: in topic, wording and form.

    Write the tasks only, without answers or numbering.
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
    """Respond to the instruction as an expert would who wants to help: correctly, with clear reasoning, in natural
    language.

    - Address every part of the instruction directly, and the needs that it implies.
    - Where reasoning helps to follow an answer or to trust it, show it step by step.
    - Include examples or evidence wherever they make a point clearer or surer.
    - Be as long and as detailed as the instruction calls for, and no vaguer than an expert would be.
    - Give it the structure that suits it (paragraphs, lists, tables, code), and the tone that its reader would want.

    The example is another instruction of the same kind with an excellent response. Take its quality as your measure and
    nothing of its content, and never mention it.
    """

    example_instruction: str = dspy.InputField()
    example_response: str = dspy.InputField()
    instruction: str = dspy.InputField()
    response: Prose = dspy.OutputField()


IMPROVING = """Work in three steps:

    1. Assess the response: its strengths, which must stay; its structure; its depth and completeness; how well it does
       what the instruction asks.
    2. Weigh the feedback: choose the points that apply to this response and can be acted on, and leave the others. How
       much would each change help? Does it fit the instruction, and keep or raise the quality?
    3. Rewrite the response in full: first the changes with the highest impact, then the smaller ones. Keep what was
       effective, and check at the end that nothing good was lost.

    The improved response answers the instruction by itself, and never mentions feedback or an earlier response."""
"""How a response is improved, with feedback on a reference or on the response itself."""
ANALYSIS = "what to keep, what would gain from a change, which feedback applies: short, specific notes, up to five a list"
STRATEGY = "what will be changed, and why that makes the response better"


class ResponseImprovement(dspy.Signature):
    __doc__ = f"""Improve the response by applying feedback. The feedback is about a similar but different instruction and
    response, so some of it will not apply: use what does, and nothing that was said of that other subject.

    {IMPROVING}
    """

    reference_feedback: str = dspy.InputField()
    instruction: str = dspy.InputField()
    response: str = dspy.InputField()
    analysis: Analysis = dspy.OutputField(desc=ANALYSIS)
    implementation_strategy: ImplementationStrategy = dspy.OutputField(desc=STRATEGY)
    improved_response: Prose = dspy.OutputField(desc="the whole response, rewritten with these changes")
