"""What the stages are asked: feedback on a reference, and synthesis with it (paper, sections 3.1 and 3.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import dspy

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.records import Analysis, AtMost, ImplementationStrategy, Prose, WeightedCriterion

Description = Annotated[str, AtMost(1_500)]
Guidance = Annotated[str, AtMost(1_999)]  # a little over 300 words, where 250 are asked for at most
# A longer instruction is a document, and a longer list does not end by itself. `how_many` is what is asked for.
NewInstruction = Annotated[str, AtMost(1_999)]
NewInstructions = Annotated[list[NewInstruction], AtMost(100)]

_FIELD_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {"instructions", "signature", "fields", "input_fields", "output_fields"}  # names that DSPy's signatures use
DEFAULT_FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "subject_areas": "Every field and topic that the task covers, what it draws on from each, and the closest "
        "related fields",
        "relevant_skills": "The skills that a good response takes, from reasoning to writing, and how the wording and "
        "structure of the instruction make clear that they are wanted",
    }
)
"""The paper's two features: name → what its description should contain."""
HEADINGS = """- Content: is it accurate? Does it cover what matters, in enough depth, with the reasoning, examples or
      evidence that it needs?
    - Communication: is it clear and complete? Does each point lead to the next, and do structure and formatting help?
      Do depth and tone suit the reader, and does it hold the reader's interest?
    - Alignment with the instruction: does it do all that was asked, with the right scope and focus, within every
      constraint? Does it meet the needs that the user implies but does not state?"""
"""What a response is judged by, on a reference and on a sample."""
FEEDBACK = "strengths to keep and ways to improve, under the three headings, in 150 to 250 words"


class InstructionFeedback(dspy.Signature):
    """Work out what makes this example an excellent task, so that new ones as good can be written from what you say.

    These new tasks will train a language model to understand what people want, to see what form a request takes, and to
    respond well. So consider:

    - every field that the task touches, and every skill that a good response takes;
    - why a reader knows at once what to do;
    - how its structure helps: the context it gives, the limits it sets, the form it asks for.

    Be general enough to fit many other tasks, and specific enough that an expert would know the field: two to four
    sentences for each output. Neither repeat the instruction nor answer it.
    """

    reference_instruction: str = dspy.InputField()
    reference_response: str = dspy.InputField()


class ResponseFeedback(dspy.Signature):
    __doc__ = f"""Study an excellent example, so that other responses can be made as good or better.

    Give detailed feedback on the reference response, as a demanding editor would, under three headings:

    {HEADINGS}

    Under each heading, say which qualities make the response effective and why, and what would make it better still, as
    advice that can be acted on. Be specific: name each technique, and say where this response uses it or lacks it, and
    with what effect. Put it so that it helps somebody who answers a related instruction, and leave out only facts that
    are of no use beyond this example.
    """

    reference_instruction: str = dspy.InputField()
    reference_response: str = dspy.InputField()
    response_feedback: Guidance = dspy.OutputField(desc=FEEDBACK)


def instruction_feedback(features: Mapping[str, str] = DEFAULT_FEATURES) -> type[dspy.Signature]:
    """The instruction-feedback signature with one output per feature, in their order.

    Raises:
        ConfigError: a name that cannot be a field's name, or is an input's name.
    """
    signature: type[dspy.Signature] = InstructionFeedback
    for name, description in features.items():
        if not _FIELD_NAME.fullmatch(name) or name in _RESERVED or name in InstructionFeedback.input_fields:
            raise ConfigError(
                f"features: {one_line(name, 40)!r} cannot be a feature's name; use others, in a-z, 0-9 and _"
            )
        signature = signature.append(name, dspy.OutputField(desc=description), Description)
    return signature


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


# --- criteria: what an answer of a reference's kind must do


class PlainAnswer(dspy.Signature):
    """Answer the instruction."""

    instruction: str = dspy.InputField()
    response: Prose = dspy.OutputField()


class ReferenceCriteria(dspy.Signature):
    """Work out what makes the reference response better than the plain response to the same instruction, and turn it
    into criteria for judging answers to other instructions of the same kind.

    Think of a hundred other instructions of that kind, on other subjects: the criteria must fit the answers to all of
    them. Each criterion:

    - is a question that begins with "Does the answer"; a good answer gets a yes;
    - asks for one thing that can be seen in an answer, so precise that two people would agree whether it is there;
    - is read by people who have never seen this pair: leave out its subject matter, names, numbers and wording, and
      speak of neither response;
    - is not about length, and not something that every answer has.

    Its weight is from 1 (nice to have) to 5 (without it the answer fails its reader).
    """

    reference_instruction: str = dspy.InputField()
    reference_response: str = dspy.InputField()
    plain_response: str = dspy.InputField()
    criteria: Annotated[list[WeightedCriterion], AtMost(8)] = dspy.OutputField(
        desc="4 to 8 criteria that differ from one another, the most important first"
    )


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
