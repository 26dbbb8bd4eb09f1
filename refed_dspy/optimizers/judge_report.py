"""What tuning did to a judge: its agreement with people before and after, a criterion a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dspy

from refed_dspy.data.pairs import Pair
from refed_dspy.optimizers.agreement import Agreement, agreement, agreement_lines
from refed_dspy.programs import Verdict


@dataclass(frozen=True)
class JudgeReport:
    """Agreement on the test pairs, criteria that only the test saw among them."""

    before: Sequence[Agreement]
    after: Sequence[Agreement]
    held_out: Sequence[str]

    def lines(self) -> list[str]:
        """Two tables for a terminal."""
        apart = f"; held out altogether: {', '.join(self.held_out)}" if self.held_out else ""
        return [
            f"agreement with people on the test pairs, uncompiled{apart}:",
            *agreement_lines(self.before),
            "compiled:",
            *agreement_lines(self.after),
        ]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types."""
        return {"before": [asdict(row) for row in self.before], "after": [asdict(row) for row in self.after]}


def agreement_of(results: Iterable[tuple[dspy.Example, Any, Any]], seed: int) -> list[Agreement]:
    """The rows for what `dspy.Evaluate` gives: (example, prediction, score). A failed prediction is an abstention."""
    pairs, verdicts = [], []
    for example, prediction, _ in results:
        pairs.append(
            Pair(
                instruction=example.instruction,
                answer_a=example.answer_a,
                answer_b=example.answer_b,
                verdict=example.people,
                criterion=example.criterion,
                description=example.description,
            )
        )
        told = prediction if isinstance(prediction, dspy.Prediction) else dspy.Prediction()
        verdicts.append(Verdict(told.get("preference"), told.get("consistent"), (), "" if told else "failed"))
    return agreement(pairs, verdicts, seed)
