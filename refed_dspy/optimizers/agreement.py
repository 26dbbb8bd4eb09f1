"""How well a judge agrees with people: its verdicts on pairs that people judged, the figures, and the report of a
compiled judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import dspy

from refed_dspy.data.pairs import Pair
from refed_dspy.errors import NO_REASON, Reason
from refed_dspy.measures.intervals import Interval, correlations, share_interval
from refed_dspy.programs.judges import (
    OVERALL,
    Criterion,
    Judgements,
    Verdict,
    criterion_named,
)
from refed_dspy.text import NO_VALUE, format_number, table_lines

ALL = "all"
PAIR_INPUTS = ("criterion", "description", "instruction", "answer_a", "answer_b")
"""What a judge sees of a pair, by the names of its signature."""
_COLUMNS = (
    "criterion", "pairs", "undecided", "failed", "accuracy", "same verdict", "consistent", "Pearson", "Spearman",
)  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """How a judge's verdicts agree with people's, by one criterion, or by all of them (`ALL`).

    In both means each instruction has the same weight, however many pairs it has, since its pairs are alike. A figure
    is None where no pair allows it. Pairs without a verdict count in `abstained` or `failed` alone.
    """

    criterion: str
    pairs: int
    abstained: int
    failed: int
    accuracy: Interval | None
    """Over pairs that people decided: 1 where the judge names their winner, 0.5 for its tie, 0 for the other."""
    same_verdict: Interval | None
    """How often the judge's verdict is that of people, ties included."""
    consistency: float | None
    """The share of judged pairs on which both orders agreed."""
    pearson: float | None
    """Of the judge's preference (-2 to 2) with people's verdict (-1 to 1)."""
    spearman: float | None


def criterion_of(pair: Pair) -> Criterion:
    """The criterion by which `pair` is judged. One of this package's own criteria needs no description."""
    return criterion_named(pair.criterion, pair.description) if pair.criterion else OVERALL


def agreement(pairs: Sequence[Pair], verdicts: Sequence[Verdict], seed: int = 0) -> list[Agreement]:
    """A row for each criterion, as they first come, and one for all if there are several; no row without a pair.

    `verdicts` are those of `pairs`, in the same order; `seed` is that of the intervals' resampling.
    Raises ValueError for lists of two lengths.
    """
    groups: dict[str, list[tuple[Pair, Verdict]]] = {}
    for pair, verdict in zip(pairs, verdicts, strict=True):
        groups.setdefault(criterion_of(pair).name, []).append((pair, verdict))
    rows = [_row(name, judged, seed) for name, judged in groups.items()]
    if len(groups) > 1:
        rows.append(_row(ALL, list(chain.from_iterable(groups.values())), seed))
    return rows


def agreement_lines(rows: Sequence[Agreement]) -> list[str]:
    """`rows` as the lines of a table, a heading first."""
    return table_lines([_COLUMNS, *map(_cells, rows)])


def _row(criterion: str, judged: Sequence[tuple[Pair, Verdict]], seed: int) -> Agreement:
    answered = [(pair, verdict, verdict.preference) for pair, verdict in judged if verdict.preference is not None]
    decided = [(pair, preference) for pair, _, preference in answered if pair.verdict != 0]
    judgements = Judgements.of(verdict for _, verdict in judged)
    correlation = correlations([preference for _, _, preference in answered], [pair.verdict for pair, _, _ in answered])
    return Agreement(
        criterion=criterion,
        pairs=len(judged),
        abstained=judgements.abstained,
        failed=judgements.failed,
        accuracy=share_of(
            [(pair.instruction, (sign(preference) * pair.verdict + 1) / 2) for pair, preference in decided], seed
        ),
        same_verdict=share_of(
            [(pair.instruction, float(sign(preference) == pair.verdict)) for pair, _, preference in answered], seed
        ),
        consistency=sum(verdict.consistent is True for _, verdict, _ in answered) / len(answered) if answered else None,
        pearson=correlation.pearson,
        spearman=correlation.spearman,
    )


def sign(preference: float) -> int:
    """The verdict that a preference is: 1 for A, 0 for a tie, -1 for B."""
    return (preference > 0) - (preference < 0)


def share_of(scored: Sequence[tuple[str, float]], seed: int) -> Interval | None:
    """The mean of (instruction, score from 0 to 1), over instructions, with its interval; None without a score."""
    if not scored:
        return None
    return share_interval([score for _, score in scored], [instruction for instruction, _ in scored], seed=seed)


def _cells(row: Agreement) -> tuple[str, ...]:
    means = (NO_VALUE if mean is None else str(mean) for mean in (row.accuracy, row.same_verdict))
    numbers = map(format_number, (row.consistency, row.pearson, row.spearman))
    return (row.criterion, str(row.pairs), str(row.abstained), str(row.failed), *means, *numbers)


@dataclass(frozen=True)
class JudgeReport:
    """Agreement on the test pairs before and after the compile. `held_out`: criteria that only the test set has."""

    before: Sequence[Agreement]
    after: Sequence[Agreement]
    held_out: Sequence[str]

    def lines(self) -> list[str]:
        """Two tables for a terminal."""
        held_out = f"; held out entirely: {', '.join(self.held_out)}" if self.held_out else ""
        return [
            f"agreement with people on the test pairs, uncompiled{held_out}:",
            *agreement_lines(self.before),
            "compiled:",
            *agreement_lines(self.after),
        ]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types."""
        return {"before": [asdict(row) for row in self.before], "after": [asdict(row) for row in self.after]}


def agreement_of_results(results: Iterable[tuple[dspy.Example, Any, Any]], seed: int) -> list[Agreement]:
    """The rows for results of `dspy.Evaluate`: (example, prediction, score). A failed prediction is a failure."""
    pairs, verdicts = [], []
    for example, prediction, _ in results:
        pairs.append(Pair(verdict=example.people, **{name: example.get(name, "") for name in PAIR_INPUTS}))
        answer = prediction if isinstance(prediction, dspy.Prediction) else dspy.Prediction()
        failed = answer.get("failed", NO_REASON) if answer else Reason("the program failed")
        verdicts.append(Verdict(answer.get("preference"), answer.get("consistent"), (), failed=failed))
    return agreement(pairs, verdicts, seed)
