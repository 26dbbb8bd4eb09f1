"""Synthesis with a reference's feedback: instructions, responses, improved responses (paper, section 3.2)."""

from __future__ import annotations

from typing import Annotated

import dspy

from refed_dspy.records import Analysis, AtMost, ImplementationStrategy, Prose
from refed_dspy.signatures.feedback import FEEDBACK, HEADINGS, Guidance

# A longer instruction is a document, and a longer list does not end by itself. `how_many` is what is asked for.
NewInstruction = Annotated[str, AtMost(1_999)]
NewInstructions = Annotated[list[NewInstruction], AtMost(100)]


class InstructionSynthesis(dspy.Signature):
    """Write new instructions of the highest quality for a data set that teaches a model to follow instructions well.

    - Each is about as complex and as long as the reference instruction, of the kind that the feature describes, and as
      clear about what is wanted.
    - Each is practical: something that a real person would ask, and that can be answered well in writing.
    - Each is complete in itself: it includes any text, data or figures that it speaks of, and never mentions the
      reference or the feature.
    - They differ clearly from one another, from the reference and from the instructions under taken, which exist
      already: in subject matter, wording and form, without leaving the feature.

    Write the instructions only, without answers or numbering.
    """

    # A round asks once for each feature, and `taken` changes only between rounds: so a round's calls share the inputs
    # before the feature.
    reference_instruction: str = dspy.InputField()
    taken: list[str] = dspy.InputField()
    feature_name: str = dspy.InputField()
    feature: str = dspy.InputField()
    how_many: int = dspy.InputField()
    new_instructions: NewInstructions = dspy.OutputField(desc="exactly as many instructions as how_many says")


class ResponseGeneration(dspy.Signature):
    """Answer the instruction as a helpful expert would: correctly, soundly reasoned, in clear language that sounds like
    a person.

    - Address every part of the instruction directly, and the needs that it implies.
    - Where steps help the reader to follow or to trust the answer, show them in order.
    - Make ideas concrete with examples, and support claims with evidence, wherever that helps.
    - Let the instruction set length and detail: cover it fully, with the particulars that an expert would give.
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
    2. Weigh the feedback: choose the points that apply to this response and can be acted on. Judge how much each change
       would help, and drop any that does not fit the instruction or might make the response worse.
    3. Rewrite the response in full: make the most useful changes first, keep what works already, and lose nothing of
       value.

    The improved response stands on its own as an answer to the instruction: nothing in it shows that it is a revision,
    or that there were comments on it."""
"""How a response is improved, with feedback on a reference or on the response itself."""
ANALYSIS = (
    "what to keep, what would gain from a change, which feedback applies: at most five short, specific notes a list"
)
STRATEGY = "what will be changed, and why that makes the response better"


class ResponseImprovement(dspy.Signature):
    __doc__ = f"""Revise the response with the help of feedback that was written about another, related instruction and
    its response. Use only the points that also hold for this response, and carry over none of the other pair's subject
    matter.

    {IMPROVING}
    """

    reference_feedback: str = dspy.InputField()
    instruction: str = dspy.InputField()
    response: str = dspy.InputField()
    analysis: Analysis = dspy.OutputField(desc=ANALYSIS)
    implementation_strategy: ImplementationStrategy = dspy.OutputField(desc=STRATEGY)
    improved_response: Prose = dspy.OutputField(desc="the whole response, rewritten with these changes")


# --- sample-level feedback, a baseline: each response is improved with feedback on that very response


class SampleFeedback(dspy.Signature):
    __doc__ = f"""Give detailed feedback on the response, as a demanding editor would, so that it can be made better.

    Judge it under three headings:

    {HEADINGS}

    Under each heading, say which qualities make the response effective and why, and what would make it better still, as
    advice that can be acted on. Be specific: name each technique, and say where this response uses it or lacks it, and
    with what effect.
    """

    instruction: str = dspy.InputField()
    response: str = dspy.InputField()
    response_feedback: Guidance = dspy.OutputField(desc=FEEDBACK)


class SampleImprovement(dspy.Signature):
    __doc__ = f"""Revise the response with the help of feedback that was written about it.

    {IMPROVING}
    """

    instruction: str = dspy.InputField()
    response: str = dspy.InputField()
    response_feedback: str = dspy.InputField()
    analysis: Analysis = dspy.OutputField(desc=ANALYSIS)
    implementation_strategy: ImplementationStrategy = dspy.OutputField(desc=STRATEGY)
    improved_response: Prose = dspy.OutputField(desc="the whole response, rewritten with these changes")
