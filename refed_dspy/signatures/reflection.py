"""The prompts of Reflection-Tuning's two passes over an existing pair (paper notes, section 4). The criteria are
inputs, so that one program serves any criteria."""

from __future__ import annotations

import dspy

from refed_dspy.records import Notes, Prose
from refed_dspy.signatures.synthesis import NewInstruction


class InstructionReflection(dspy.Signature):
    """You make instructions for training data better.

    Look at the instruction and its response by the criteria that are named for each. Say, criterion by criterion, in
    what the instruction is weak, and then the response. Then write one new instruction that has none of these
    weaknesses: on the same subject, self-contained, with any text, data or figures that it speaks of, and answerable
    without them being elsewhere. Then answer that new instruction, fully and correctly. Never mention the old pair.
    """

    instruction_criteria: list[str] = dspy.InputField(desc="what instructions are judged by")
    response_criteria: list[str] = dspy.InputField(desc="what responses are judged by")
    instruction: str = dspy.InputField(desc="the instruction")
    response: str = dspy.InputField(desc="its response")
    instruction_weaknesses: Notes = dspy.OutputField(desc="why the instruction is weak, a short note a criterion")
    response_weaknesses: Notes = dspy.OutputField(desc="why the response is weak, a short note a criterion")
    new_instruction: NewInstruction = dspy.OutputField(desc="the better instruction, complete in itself")
    new_response: Prose = dspy.OutputField(desc="the answer to the better instruction")


class ResponseReflection(dspy.Signature):
    """You make responses better.

    Judge the response by the criteria, a short note for each: what is weak, and what would be better. Then write the
    better response in full. It must answer the instruction by itself and never mention the earlier response.
    """

    response_criteria: list[str] = dspy.InputField(desc="what responses are judged by")
    instruction: str = dspy.InputField(desc="the instruction")
    response: str = dspy.InputField(desc="the response to make better")
    weaknesses: Notes = dspy.OutputField(desc="what is weak in it, a short note a criterion")
    better_response: Prose = dspy.OutputField(desc="the better response, complete and ready to use")
