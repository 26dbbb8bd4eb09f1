"""The DSPy modules: stages composed into the flow of the paper, and how a stage is asked."""

from refed_dspy.programs.baselines import InstructionFeedbackOnly, SampleLevelFeedback, SeedOnly
from refed_dspy.programs.judges import Criterion, PairwiseJudge, RubricJudge, Verdict
from refed_dspy.programs.reference_level import ReferenceLevelFeedback

__all__ = [
    "Criterion",
    "InstructionFeedbackOnly",
    "PairwiseJudge",
    "ReferenceLevelFeedback",
    "RubricJudge",
    "SampleLevelFeedback",
    "SeedOnly",
    "Verdict",
]
