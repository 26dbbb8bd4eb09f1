"""The DSPy modules: stages composed into the flow of the paper, and how a stage is asked."""

from refed_dspy.programs.reference_level import ReferenceLevelFeedback

__all__ = ["ReferenceLevelFeedback"]
