"""The result of IFEval, as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.errors import one_line
from refed_dspy.filters.overlap import Contamination
from refed_dspy.plugins.evaluate.facts import facts_of, overlap_lines
from refed_dspy.plugins.evaluate.ifeval.accuracy import FIGURES, Accuracy
from refed_dspy.text import Shown, counted, table_lines

INTERVALS = "Intervals are 95%, by a bootstrap over prompts."


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
        told = f"{counted(self.prompts, 'prompt')} with {counted(self.instructions, 'instruction')}, by {self.checker}"
        return [told, INTERVALS, *overlap_lines(self.overlap)]

    def lines(self) -> list[str]:
        """The table, and what must be known beside it."""
        return [*table_lines([_HEADING, *map(_cells, self.arms)]), "", *self.notes()]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types: see `facts_of`."""
        return facts_of(self, self._figures()) | {"benchmark": "ifeval", "judge_said": [], "stopped": ""}

    def _figures(self) -> Mapping[str, float]:
        figures: dict[str, float] = {}
        for each in self.arms:
            for name in FIGURES:
                interval = getattr(each, name)
                figures |= {f"{each.arm}/{name}": interval.mean, f"{each.arm}/{name}_low": interval.low}
                figures[f"{each.arm}/{name}_high"] = interval.high
        return figures


_HEADING = ("arm", *(f"{name.replace('_', ', ')} %" for name in FIGURES))


def _cells(accuracy: Accuracy) -> list[str]:
    return [one_line(accuracy.arm, 60), *(str(getattr(accuracy, name)) for name in FIGURES)]
