"""The prompts of sample-level feedback, a baseline: each response is improved with feedback on that very response."""

from __future__ import annotations

import dspy

from refed_dspy.records import Analysis, ImplementationStrategy, Prose
from refed_dspy.signatures.feedback import FEEDBACK, HEADINGS, Guidance
from refed_dspy.signatures.synthesis import ANALYSIS, IMPROVING, STRATEGY


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
