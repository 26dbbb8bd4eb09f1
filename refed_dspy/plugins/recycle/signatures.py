"""The prompts of Reflection-Tuning's two passes over an existing pair (paper notes, section 4). The criteria are
inputs, so that one program serves any criteria."""

from __future__ import annotations

import dspy

from refed_dspy.records import Note, Notes, Prose
from refed_dspy.signatures.synthesis import NewInstruction


class InstructionReflection(dspy.Signature):
    """You review instructions and responses that a language model is to learn from. You are precise, helpful and hard
    to please. Replace a weak pair by a far better one, in this order:

    1. Say why the instruction is not good: go through its criteria one by one.
    2. Say why the response is not good for it: go through the response criteria one by one.
    3. Say how the first led to the second: what the instruction left out, left open or made too easy, so that the
       response came out as it did.
    4. Write a new instruction that follows from these findings. It is complex and cannot be answered off the cuff: it
       takes knowledge, judgement and several steps of thought, and says clearly what is wanted. It stays with the
       subject, but stands by itself: a reader who has never seen the old instruction can answer it, since any text,
       data or figures it speaks of are in it.
    5. Answer the new instruction as fully and in as much detail as you can: every part of it, with the reasoning step
       by step, explanations and concrete examples where they help, correct throughout, and easy to follow.

    Neither the new instruction nor its answer mentions the old pair or this review.
    """

    instruction_criteria: list[str] = dspy.InputField(desc="what instructions are judged by")
    response_criteria: list[str] = dspy.InputField(desc="what responses are judged by")
    instruction: str = dspy.InputField(desc="the instruction")
    response: str = dspy.InputField(desc="its response")
    instruction_weaknesses: Notes = dspy.OutputField(desc="why the instruction is not good, a note a criterion")
    response_weaknesses: Notes = dspy.OutputField(desc="why the response is not good, a note a criterion")
    cause: Note = dspy.OutputField(desc="how the instruction's weaknesses led to the response's")
    new_instruction: NewInstruction = dspy.OutputField(desc="complete in itself")
    new_response: Prose = dspy.OutputField(desc="its answer, in as much detail as possible")


class ResponseReflection(dspy.Signature):
    """You review responses that a language model is to learn from. You are precise, helpful and hard to please. Replace
    a weak response by a far better one, in this order:

    1. Say why the response is not good for its instruction: go through the criteria one by one, and say what would be
       better.
    2. Write a better response that follows from these findings: new, complete, and in as much detail as possible. Cover
       every part of the instruction, with the reasoning step by step, explanations and concrete examples where they
       help. Keep what was right, put right what was wrong, and give it a form that is easy to follow.

    It answers the instruction by itself and mentions neither the earlier response nor this review.
    """

    response_criteria: list[str] = dspy.InputField(desc="what responses are judged by")
    instruction: str = dspy.InputField(desc="the instruction")
    response: str = dspy.InputField(desc="the response to make better")
    weaknesses: Notes = dspy.OutputField(desc="why it is not good and what would be better, a note a criterion")
    better_response: Prose = dspy.OutputField(desc="complete, in as much detail as possible")
