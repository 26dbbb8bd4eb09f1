"""How long the texts are, and what the judges gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refed_dspy.metrics.wording import Spread, spread
from refed_dspy.sharing.report.charts import GREEN, PALETTE, RED, Chart, Figure, plain, titled
from refed_dspy.sharing.report.rows import Rows
from refed_dspy.text import NONE, number

_BINS = 40
_TEXTS = {"instruction": "instruction", "plain response": "response", "improved response": "improved"}


def lengths(rows: Rows) -> Chart | None:
    """Words of the texts of kept rows, white space between them; None where no row was kept."""
    kept = [at for at, flag in enumerate(rows.columns["kept"]) if flag]
    words = {
        name: np.asarray([len(text.split()) for at in kept if (text := rows.columns[column][at]) is not None])
        for name, column in _TEXTS.items()
    }
    words = {name: counts for name, counts in words.items() if counts.size}
    if not words:
        return None
    # The last bin holds all that is longer: one text without end would leave no room for the others.
    top = max(1.0, float(np.percentile(np.concatenate(list(words.values())), 99.5)))
    edges = np.linspace(0, top, _BINS + 1)
    traces = [
        _bars(name, _centres(edges), np.histogram(np.minimum(counts, top), edges)[0], PALETTE[place], 0.6)
        for place, (name, counts) in enumerate(words.items())
    ]
    layout = {**titled("words", "rows"), "barmode": "overlay", "bargap": 0}
    told = [[name, *_told(spread(counts))] for name, counts in words.items()]
    medians = ", ".join(f"{np.median(counts):.0f} in the {name}" for name, counts in words.items())
    columns = ("text", "rows", "mean", "median", "5%", "95%", "longest")
    return Chart("lengths", "Lengths", f"Median words: {medians}.", {"data": traces, "layout": layout}, columns, told)


def scores(rows: Rows) -> list[Chart]:
    """What each filter gave that tells rows apart by a score: kept and dropped rows side by side."""
    given: dict[int, tuple[list[float | None], list[float | None]]] = {}
    for decisions in rows.columns["decisions"]:
        for label, kept, score, *_ in decisions:
            given.setdefault(label, ([], []))[0 if kept else 1].append(score)
    telling = [label for label, both in given.items() if len({*both[0], *both[1]} - {None}) > 1]
    return [_scores(place, rows.names["filters"][label], *given[label]) for place, label in enumerate(telling)]


def _scores(place: int, name: str, kept_all: Sequence[float | None], dropped_all: Sequence[float | None]) -> Chart:
    kept, dropped = ([one for one in every if one is not None] for every in (kept_all, dropped_all))
    values = np.unique(np.asarray([*kept, *dropped]))
    few = len(values) <= _BINS  # grades, say: a bar each
    edges = _between(values) if few else np.linspace(values[0], values[-1], _BINS + 1)
    parts = (("kept", GREEN, kept), ("dropped", RED, dropped))
    traces = [
        _bars(part, values if few else _centres(edges), np.histogram(own, edges)[0], color, 1)
        for part, color, own in parts
        if own
    ]
    layout = {**titled("score", "rows"), "barmode": "stack"}
    without = len(kept_all) + len(dropped_all) - len(kept) - len(dropped)
    text = f"{len(kept_all):,} rows kept and {len(dropped_all):,} dropped by {name}, by the score it gave."
    text += f" {without:,} of them have none." if without else ""
    told = [[part, *_told(spread(own))] for part, _, own in parts]
    columns = ("rows that were", "rows", "mean", "median", "5%", "95%", "highest")
    figure = {"data": traces, "layout": layout}
    return Chart(f"scores-{place}", f"Scores of {name}", text, figure, columns, told)


def _centres(edges: Any) -> Any:
    return (edges[:-1] + edges[1:]) / 2


def _between(values: Any) -> Any:
    """Edges of bins that hold one of the two or more values each."""
    middle = _centres(values)
    return np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])


def _bars(name: str, x: Any, heights: Any, color: str, opacity: float) -> Figure:
    places = np.asarray(x, dtype=float).round(4).tolist()
    return {
        "type": "bar", "name": plain(name), "x": places, "y": heights.tolist(), "marker": {"color": color},
        "opacity": opacity,
    }  # fmt: skip


def _told(of: Spread | None) -> list[str]:
    if of is None:
        return ["0", *[NONE] * 5]
    numbers = (of.mean, of.median, of.p5, of.p95, of.maximum)
    return [f"{of.count:,}", *(number(one, 0 if abs(one) >= 100 or one == int(one) else 2) for one in numbers)]
