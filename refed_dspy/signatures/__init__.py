"""The prompts as DSPy signatures: those of Reference-Level Feedback (exported here), those of sample-level feedback,
of Reflection-Tuning and of the judges. A signature's docstring is its prompt.

In every signature the inputs are ordered from the most stable to the most variable, so that a prefix cache keeps what
calls of one reference share. Bounds on outputs are generous: they stop an answer that does not end, and do not shape a
good one.
"""

from refed_dspy.signatures.stages import (
    DEFAULT_FEATURES,
    InstructionSynthesis,
    ResponseFeedback,
    ResponseGeneration,
    ResponseImprovement,
    instruction_feedback,
)

__all__ = [
    "DEFAULT_FEATURES",
    "InstructionSynthesis",
    "ResponseFeedback",
    "ResponseGeneration",
    "ResponseImprovement",
    "instruction_feedback",
]
