"""The result of IFEval, as a table for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refed_dspy.errors import one_line
from refed_dspy.filters.overlap import Contamination
from refed_dspy.runs.evaluation.ifeval.accuracy import FIGURES, Accuracy
from refed_dspy.text import Shown, counted, table_lines

INTERVALS = "Intervals are 95%, by a bootstrap over prompts."
UNCHECKED = "not checked for overlap with the training data; name it with data=…"


@dataclass(frozen=True, repr=False)
class Accuracies(Shown):
    """Arms checked against the same prompts, written to `out`."""

    out: Path
    date: str
    """When they were checked, in UTC."""
    checker: str
    """Whose code checked, with its version."""
    prompts: int
    instructions: int
    arms: Sequence[Accuracy]
    overlap: Contamination | None
    """None where no training data was named."""

    def _describe(self) -> str:
        return f"{', '.join(each.arm for each in self.arms)} on {counted(self.prompts, 'prompt')}, in {self.out}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return _HEADING, map(_cells, self.arms)

    def notes(self) -> list[str]:
        """What must be known beside the figures, in a line each."""
        overlap = [UNCHECKED] if self.overlap is None else [f"training data: {self.overlap.lines()[0]}"]
        told = f"{counted(self.prompts, 'prompt')} with {counted(self.instructions, 'instruction')}, by {self.checker}"
        return [told, INTERVALS, *overlap, *([] if self.overlap is None else self.overlap.lines()[1:])]

    def lines(self) -> list[str]:
        """The table, and what must be known beside it."""
        return [*table_lines([_HEADING, *map(_cells, self.arms)]), "", *self.notes()]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types. `figures` has numbers by their names, for MLflow and scripts."""
        facts = asdict(self) | {"out": str(self.out), "notes": self.notes(), "figures": self._figures()}
        facts |= {"benchmark": "ifeval", "judge_said": [], "stopped": ""}
        return dict(json.loads(json.dumps(facts, default=str), parse_constant=lambda _: None))

    def _figures(self) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for each in self.arms:
            for name in FIGURES:
                interval = getattr(each, name)
                figures |= {f"{each.arm}/{name}": interval.mean, f"{each.arm}/{name}_low": interval.low}
                figures[f"{each.arm}/{name}_high"] = interval.high
        if self.overlap is not None:
            figures["overlap_share"] = self.overlap.share
        return figures


_HEADING = ("arm", *(f"{name.replace('_', ', ')} %" for name in FIGURES))


def _cells(accuracy: Accuracy) -> list[str]:
    return [one_line(accuracy.arm, 60), *(str(getattr(accuracy, name)) for name in FIGURES)]
