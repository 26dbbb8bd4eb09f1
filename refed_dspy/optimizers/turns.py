"""Several programs on the same examples, in turns.

A hosted model may change while a compile proves a gain, or a judge grow stricter. If one program were scored after the
other, such a drift would be taken for a gain: in up to 22% of comparisons without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy


class Turns:
    """`programs` by name, to be scored by `metric` as one program by `dspy.Evaluate`, whose devset is `of(examples)`:
    each example once for each program, and another program first each time."""

    def __init__(self, programs: Mapping[str, dspy.Module], metric: Callable[[dspy.Example, Any], Any]) -> None:
        self.programs, self.metric = programs, metric

    def of(self, examples: Sequence[dspy.Example]) -> list[dspy.Example]:
        names = list(self.programs)
        return [
            dspy.Example(turn=names[(index + at) % len(names)], example=example).with_inputs("turn", "example")
            for index, example in enumerate(examples)
            for at in range(len(names))
        ]

    def __call__(self, turn: str, example: dspy.Example) -> Any:
        return self.programs[turn](**example.inputs())

    def score(self, turn: dspy.Example, prediction: Any) -> Any:
        return self.metric(turn.example, prediction)

    def results(self, evaluation: Any) -> dict[str, list[Any]]:
        """Program's name → (example, prediction, score) of each example."""
        return {
            name: [
                (turn.example, prediction, score) for turn, prediction, score in evaluation.results if turn.turn == name
            ]
            for name in self.programs
        }
