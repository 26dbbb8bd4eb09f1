"""Programs that are scored in turns, so that a drift favours none."""

from __future__ import annotations

from typing import Any

import dspy

from refed_dspy.optimizers.steps import Turns


class Says(dspy.Module):  # type: ignore[misc]
    def __init__(self, word: str, asked: list[str]) -> None:
        super().__init__()
        self.word, self.asked = word, asked

    def forward(self, question: str) -> dspy.Prediction:
        self.asked.append(f"{self.word}{question}")
        return dspy.Prediction(answer=self.word + question)


def test_each_example_goes_to_all_of_them_one_after_the_other_and_another_is_first_each_time() -> None:
    asked: list[str] = []
    examples = [dspy.Example(question=str(n), answer=f"a{n}").with_inputs("question") for n in range(3)]

    def metric(example: dspy.Example, prediction: Any) -> float:
        assert set(example.keys()) == {"question", "answer"}, "the metric knows the example by its content"
        return float(example.answer == prediction.answer)

    turns = Turns({name: Says(name, asked) for name in "ab"}, metric)
    evaluate = dspy.Evaluate(devset=turns.of(examples), metric=turns.score, num_threads=1, display_progress=False)
    results = turns.results(evaluate(turns))
    assert asked == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert {name: [score for *_, score in each] for name, each in results.items()} == {"a": [1.0] * 3, "b": [0.0] * 3}
    assert [example for example, _, _ in results["b"]] == examples
