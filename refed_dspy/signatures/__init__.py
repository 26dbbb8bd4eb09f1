"""The five prompts of Reference-Level Feedback: their types and their words.

In every signature the inputs run from the most stable to the most variable, so that a prefix cache
keeps what calls of one reference share. Bounds on outputs are generous: they stop a runaway answer,
they do not shape a good one.
"""

from refed_dspy.signatures.feedback import DEFAULT_FEATURES, ResponseFeedback, instruction_feedback
from refed_dspy.signatures.synthesis import InstructionSynthesis, ResponseGeneration, ResponseImprovement

__all__ = [
    "DEFAULT_FEATURES",
    "InstructionSynthesis",
    "ResponseFeedback",
    "ResponseGeneration",
    "ResponseImprovement",
    "instruction_feedback",
]
