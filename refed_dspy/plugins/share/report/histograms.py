"""Histograms of the texts' lengths and of the filters' scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from refed_dspy.plugins.metrics.wording import Spread, spread
from refed_dspy.plugins.share.report.charts import Chart
from refed_dspy.plugins.share.report.drawing import GREEN, RED, Histogram
from refed_dspy.text import NO_VALUE, counted, format_number

_BINS = 40
Scores: TypeAlias = tuple[Sequence[float], Sequence[float]]


def lengths(counts: Mapping[str, Sequence[int]]) -> Chart | None:
    """Words in the texts of kept rows (`AllRows.words`); None where no row was kept."""
    words = {name: np.asarray(numbers) for name, numbers in counts.items()}
    if not words:
        return None
    # The last bin holds everything longer: otherwise one huge text would squeeze all others into the first bin.
    top = max(1.0, float(np.percentile(np.concatenate(list(words.values())), 99.5)))
    edges = np.linspace(0, top, _BINS + 1)
    heights = {
        name: (color, np.histogram(np.minimum(counts, top), edges)[0].tolist())
        for color, (name, counts) in enumerate(words.items())
    }
    figure = Histogram("words", _centres(edges).tolist(), top / _BINS, heights, stacked=False)
    table = [[name, *_cells(spread(counts))] for name, counts in words.items()]
    medians = ", ".join(f"{np.median(counts):.0f} in the {name}" for name, counts in words.items())
    columns = ("text", "rows", "mean", "median", "5%", "95%", "longest")
    return Chart("lengths", "Lengths", f"Median words: {medians}.", figure, columns, table)


def scores(filters: Sequence[Mapping[str, Any]], given: Mapping[str, Scores]) -> list[Chart]:
    """A chart for each filter whose scores differ between rows: kept and dropped rows side by side.

    `filters`: see `decisions_by_filter`; `given`: see `AllRows.scores`.
    """
    found = [(counts, [np.asarray(part) for part in given.get(counts["filter"], ((), ()))]) for counts in filters]
    varied = [(counts, parts) for counts, parts in found if len(np.unique(np.concatenate(parts))) > 1]
    return [_scores(place, counts, *parts) for place, (counts, parts) in enumerate(varied)]


def _scores(place: int, counts: Mapping[str, Any], dropped: Any, kept: Any) -> Chart:
    values = np.unique(np.concatenate([kept, dropped]))
    few = len(values) <= _BINS  # such as grades: a bar each
    edges = _between(values) if few else np.linspace(values[0], values[-1], _BINS + 1)
    groups = (("kept", GREEN, kept), ("dropped", RED, dropped))
    places = (values if few else _centres(edges)).tolist()
    heights = {
        group: (color, np.histogram(scores, edges)[0].tolist()) for group, color, scores in groups if len(scores)
    }
    name, rows = counts["filter"], counts["kept"] + counts["dropped"]
    without = rows - len(kept) - len(dropped)
    text = f"{counted(counts['kept'], 'row')} kept and {counts['dropped']:,} dropped by {name}, by the score it gave."
    if without:
        text += f" {without:,} of them have none." if len(kept) else " It gives kept rows no score."
    table = [[group, *_cells(spread(scores))] for group, _, scores in groups]
    columns = ("rows that were", "rows", "mean", "median", "5%", "95%", "highest")
    figure = Histogram("score", places, float(np.diff(edges).min()), heights, stacked=True)
    return Chart(f"scores-{place}", f"Scores of {name}", text, figure, columns, table)


def _centres(edges: Any) -> Any:
    return (edges[:-1] + edges[1:]) / 2


def _between(values: Any) -> Any:
    """Edges of bins that each hold a single one of two or more sorted values."""
    middle = _centres(values)
    return np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])


def _cells(of: Spread | None) -> list[str]:
    if of is None:
        return ["0", *[NO_VALUE] * 5]
    numbers = (of.mean, of.median, of.p5, of.p95, of.maximum)
    return [
        f"{of.count:,}",
        *(format_number(value, 0 if abs(value) >= 100 or value == int(value) else 2) for value in numbers),
    ]
