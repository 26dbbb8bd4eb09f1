"""The prompts of sample-level feedback, a baseline: each response is improved with feedback on that very response."""

from __future__ import annotations

import dspy

from refed_dspy.records import Analysis, ImplementationStrategy, Prose
from refed_dspy.signatures.feedback import HEADS, Guidance
from refed_dspy.signatures.synthesis import ANALYSIS, IMPROVING, STRATEGY


class SampleFeedback(dspy.Signature):
    __doc__ = f"""Give detailed feedback on the response, as a demanding editor would, so that it can be made better.

    Judge it under three heads:

    {HEADS}

    Under each head, say which qualities make the response effective and why, and what would make it better still: as
    concrete advice that can be acted on.
    """

    instruction: str = dspy.InputField()
    response: str = dspy.InputField()
    response_feedback: Guidance = dspy.OutputField(
        desc="strengths to keep and ways to improve, under the three heads, in 150 to 250 words"
    )


class SampleImprovement(dspy.Signature):
    __doc__ = f"""Improve the response by applying the feedback, which is about this very response.

    {IMPROVING}
    """

    instruction: str = dspy.InputField()
    response: str = dspy.InputField()
    response_feedback: str = dspy.InputField()
    analysis: Analysis = dspy.OutputField(desc=ANALYSIS)
    implementation_strategy: ImplementationStrategy = dspy.OutputField(desc=STRATEGY)
    improved_response: Prose = dspy.OutputField(desc="the whole response, rewritten with these changes")
