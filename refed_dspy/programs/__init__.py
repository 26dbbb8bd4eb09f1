"""The DSPy modules: Reference-Level Feedback, what it is compared with, and the judges; how their stages are asked, and
how programs are saved and loaded."""

from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.judges import Criterion, PairwiseJudge, RubricJudge, Verdict
from refed_dspy.programs.reference_level import (
    InstructionFeedbackOnly,
    ReferenceLevelFeedback,
    SampleLevelFeedback,
    SeedOnly,
)

__all__ = [
    "Criterion",
    "InstructionFeedbackOnly",
    "PairwiseJudge",
    "ReferenceLevelFeedback",
    "RubricJudge",
    "SampleLevelFeedback",
    "SchemaAdapter",
    "SeedOnly",
    "Verdict",
]
