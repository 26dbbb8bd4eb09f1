"""Sample-level feedback, the baseline: each response is judged by itself, and improved by what was said of it."""

from __future__ import annotations

import dspy

from refed_dspy.records import Analysis, ImplementationStrategy, Prose
from refed_dspy.signatures.feedback import Guidance


class SampleFeedback(dspy.Signature):
    """You judge responses so that they can be made better.

    Judge the response as a demanding editor would, under three heads: content (accuracy, depth, relevance),
    communication (clarity, flow, structure, tone) and alignment with the instruction (scope, implied needs,
    constraints). Name what makes it strong and what would make it stronger still.
    """

    instruction: str = dspy.InputField(desc="the instruction")
    response: str = dspy.InputField(desc="the response to judge")
    response_feedback: Guidance = dspy.OutputField(
        desc="strengths to keep and ways to improve, under the three heads, in at most 200 words"
    )


class SampleImprovement(dspy.Signature):
    """You improve responses.

    The feedback was written about this very response. First note what is good in the response, what could be
    better, and which parts of the feedback matter most; then decide what to change and why; then write the improved
    response in full. It must answer the instruction by itself, keep what was good, and never mention the feedback or
    the earlier response.
    """

    instruction: str = dspy.InputField(desc="the instruction")
    response: str = dspy.InputField(desc="the response to improve")
    response_feedback: str = dspy.InputField(desc="feedback on the response")
    analysis: Analysis = dspy.OutputField(
        desc="what is good, what could be better, which feedback applies; short notes"
    )
    implementation_strategy: ImplementationStrategy = dspy.OutputField(desc="what to change, and why; short notes")
    improved_response: Prose = dspy.OutputField(desc="the improved response, complete and ready to use")
