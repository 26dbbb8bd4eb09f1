"""The result of an evaluation by AlpacaEval, as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from refed_dspy.errors import one_line
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.evaluate.judged import Evaluated
from refed_dspy.plugins.metrics.win_rates import LC_NOTE
from refed_dspy.text import NO_VALUE, counted, format_number

RETIRED = (
    "Published AlpacaEval 2 figures were judged by gpt-4-1106-preview, which is retired: compare only models that the "
    "same living judge has judged."
)
LICENCE = "AlpacaEval's data is CC BY-NC 4.0: not for commercial use."
_HEADING = (
    "model", "baseline", "n", "win rate %", "standard error", "95% interval", "length-controlled %", "by", "judge",
    "date (UTC)",
)  # fmt: skip


@dataclass(frozen=True)
class AtEqualLength:
    """A length-controlled win rate in percent. `official`: by AlpacaEval's own fit; else by ours. `note` is empty, or
    says why there is none, or what limits it."""

    official: bool
    interval: Interval | None
    note: str = ""


@dataclass(frozen=True)
class AlpacaFigures:
    """What AlpacaEval's code made of the judge's answers. Rates are in percent."""

    n: int
    """Comparisons with a preference."""
    win_rate: float
    standard_error: float
    """NaN of a single comparison."""
    interval: Interval
    """95%, by a bootstrap over instructions."""
    length_controlled: AtEqualLength


@dataclass(frozen=True, kw_only=True, repr=False)
class AlpacaEvaluation(Evaluated):
    """An evaluation by AlpacaEval: as `Evaluated`, and the figures."""

    model: str
    size: int
    """How many comparisons there shall be."""
    judged: AlpacaFigures | None

    @property
    def problem(self) -> str:
        """In one line, that comparisons have no preference; empty where all do, or a cap ended it."""
        missing = self.size - (self.judged.n if self.judged is not None else 0)
        if self.stopped or not missing:
            return ""
        return (
            f"{missing} of {counted(self.size, 'comparison')} have no preference, and the figures are of the others "
            "alone; the same command asks again where that may help"
        )

    def _describe(self) -> str:
        if self.judged is None:
            return f"{self.asked} of {counted(self.size, 'comparison')} judged by {self.judge}, {self.used}"
        return f"{self.model} wins {self.judged.interval} % against {self.baseline}, judged by {self.judge}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return _HEADING, [] if self.judged is None else [_cells(self, self.judged)]

    def _notes(self) -> list[str]:
        notes = [RETIRED, LICENCE]
        if self.judged is not None:
            equal = self.judged.length_controlled
            notes[:0] = [
                *([f"length-controlled: {equal.note}"] if equal.note else []),
                *([] if equal.official else [LC_NOTE]),
            ]
        return notes

    def _figures(self) -> dict[str, float]:
        judged = self.judged
        if judged is None:
            return {}
        figures = {"n": judged.n, "win_rate": judged.win_rate, "standard_error": judged.standard_error}
        figures |= {"win_rate_low": judged.interval.low, "win_rate_high": judged.interval.high}
        if (equal := judged.length_controlled).interval is not None:
            kind = "length_controlled" if equal.official else "length_controlled_own_fit"
            figures[kind] = equal.interval.mean
        return figures


def _cells(made: AlpacaEvaluation, judged: AlpacaFigures) -> list[str]:
    equal = judged.length_controlled
    said = ", ".join(name for name in made.judge_said[:3] if not made.judge.endswith(f"/{name}"))
    return [
        one_line(made.model, 40),
        one_line(made.baseline, 40),
        str(judged.n),
        f"{judged.win_rate:.2f}",
        format_number(judged.standard_error),
        f"{judged.interval.low:.1f} to {judged.interval.high:.1f}",
        NO_VALUE if equal.interval is None else str(equal.interval),
        "AlpacaEval's fit" if equal.official else "our fit",
        one_line(f"{made.judge} ({said})" if said else made.judge, 80),
        made.date,
    ]
