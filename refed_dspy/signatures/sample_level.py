"""The prompts of sample-level feedback, a baseline: each response is improved with feedback on that very response."""

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

    instruction: str = dspy.InputField()
    response: str = dspy.InputField()
    response_feedback: Guidance = dspy.OutputField(
        desc="strengths to keep and ways to improve, under the three heads, in 100 to 200 words"
    )


class SampleImprovement(dspy.Signature):
    """Improve the response: judge it, plan changes, rewrite it with them in full.

    The feedback is about this very response: use what matters most. The new response answers the instruction by itself,
    keeps what was good, and never mentions the feedback or the earlier response.
    """

    instruction: str = dspy.InputField()
    response: str = dspy.InputField()
    response_feedback: str = dspy.InputField()
    analysis: Analysis = dspy.OutputField(desc="one to three short notes a list")
    implementation_strategy: ImplementationStrategy = dspy.OutputField(desc="likewise; why, in one sentence")
    improved_response: Prose = dspy.OutputField()
