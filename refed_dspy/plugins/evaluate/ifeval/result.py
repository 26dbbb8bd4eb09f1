"""The result of IFEval, as a table for people and as JSON: shares of prompts all of whose instructions were followed,
and of instructions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.errors import one_line
from refed_dspy.filters.overlap import Contamination
from refed_dspy.measures.intervals import Interval, mean_interval
from refed_dspy.plugins.evaluate.judged import facts_of, overlap_lines
from refed_dspy.text import Shown, counted, table_lines

INTERVALS = "Intervals are 95%, by a bootstrap over prompts."
Followed = Sequence[Sequence[bool]]
"""For each prompt, whether each of its instructions was followed."""
FIGURES = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
"""The benchmark's four figures, in its order: the names of an `Accuracy`'s."""
_HEADING = ("arm", *(f"{name.replace('_', ', ')} %" for name in FIGURES))


@dataclass(frozen=True)
class Accuracy:
    """An arm's accuracies in percent, with 95% intervals over prompts: instructions of one prompt are alike."""

    arm: str
    prompt_strict: Interval
    instruction_strict: Interval
    prompt_loose: Interval
    instruction_loose: Interval


def accuracy(arm: str, strict: Followed, loose: Followed) -> Accuracy:
    """The four figures of the benchmark. Raises ValueError without a prompt."""
    return Accuracy(arm, by_prompt(strict), by_instruction(strict), by_prompt(loose), by_instruction(loose))


def by_prompt(followed: Followed) -> Interval:
    """The share of prompts with all instructions followed."""
    return _bounded(mean_interval([100.0 * all(each) for each in followed]))


def by_instruction(followed: Followed) -> Interval:
    """The share of instructions that were followed. The interval is that of the ratio of two means over prompts, to
    first order: of share + (followed - share * asked) / mean asked, whose mean is the share."""
    asked = sum(map(len, followed))
    share, mean = 100 * sum(map(sum, followed)) / asked, asked / len(followed)
    interval = mean_interval([share + (100 * sum(each) - share * len(each)) / mean for each in followed])
    return _bounded(Interval(share, interval.low, interval.high, asked, interval.clusters))


def _bounded(interval: Interval) -> Interval:
    low, high = max(0.0, interval.low), min(100.0, interval.high)
    return Interval(interval.mean, low, high, interval.n, interval.clusters)


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


def _cells(accuracy: Accuracy) -> list[str]:
    return [one_line(accuracy.arm, 60), *(str(getattr(accuracy, name)) for name in FIGURES)]
