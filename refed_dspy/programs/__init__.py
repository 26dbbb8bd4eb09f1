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
from refed_dspy.programs.synthesis import Proposal, SynthesisProgram
from refed_dspy.records import Sample

__all__ = [
    "Criterion",
    "InstructionFeedbackOnly",
    "PairwiseJudge",
    "Proposal",
    "ReferenceLevelFeedback",
    "RubricJudge",
    "Sample",
    "SampleLevelFeedback",
    "SchemaAdapter",
    "SeedOnly",
    "SynthesisProgram",
    "Verdict",
]
