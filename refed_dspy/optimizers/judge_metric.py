"""The metric that a judge is tuned by: people's verdicts (HEAP; paper notes, section 5)."""

from __future__ import annotations

from typing import Any

import dspy

from refed_dspy.optimizers.scoring import Evaluation, NotScored

_WORDS = {1.0: "answer A", 0.0: "neither: a tie", -1.0: "answer B"}


class PeoplesVerdict:
    """How near a pairwise judge comes to people: 1 for the same verdict, ½ where one of both sees a tie, else 0.

    Its examples hold people's verdict as `people`: 1 (A), 0 (a tie) or -1 (B).
    """

    accept = 1.0

    def identity(self) -> dict[str, Any]:
        return {"metric": "people's verdict"}

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> Evaluation:  # noqa: ARG002
        """Raises NotScored where the judge abstained."""
        if prediction.preference is None:
            raise NotScored(f"the judge abstained: {prediction.abstained}")
        said = (prediction.preference > 0) - (prediction.preference < 0)
        return Evaluation(1 - abs(said - example.people) / 2, {"consistent": float(prediction.consistent)})

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:  # noqa: ARG002
        """What people said, and whether the judge kept to its verdict when the answers changed places."""
        lines = [f"People preferred {_WORDS[float(example.people)]}."]
        inputs = trace[0][1] if trace else {}
        if inputs.get("answer_a") == example.answer_b:
            lines.append("(In this call A and B stood the other way round.)")
        if prediction.consistent is False:
            lines.append("The judge's verdict changed with the order of the answers; order must not matter.")
        lines += [f"The judge's reason: {reason}" for reason in prediction.reasons]
        return "\n".join(lines)
