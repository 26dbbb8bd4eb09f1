"""The metric for references that stand under a system prompt."""

from __future__ import annotations

import dspy

from tests.support.metric_bench import REFERENCE, Bench, call, made, prompt, sample


def test_feedback_finds_the_answer_under_a_system_prompt() -> None:
    bench = Bench(per_feature=1)
    reference = REFERENCE.model_copy(update={"system": "Answer in French."})
    example, prediction = dspy.Example(reference=reference).with_inputs("reference"), made([sample(1, "5")])
    asked = call({"instruction": reference.posed(prediction.samples[0].instruction)})
    told = bench.metric.feedback(example, prediction, "response_generation", asked)
    assert "came to no final answer" not in told
    assert all("Answer in French." in prompt(request) for request in bench.judge.asked("verdict"))
