"""The gain at equal length: what is left of a gain once the judge's liking for long answers is taken out.

A judge that prefers whatever is longer rewards "write much longer", and no weight on its verdicts helps: each of them
is a win. What helps is that a program's answers are not all longer by the same: the verdicts on its shorter answers
tell what the judge makes of length. As in AlpacaEval's length-controlled win rate (Dubois et al. 2024) a slope by
length is fitted beside each program's own level, here by least squares, and what it gave is subtracted:

    win = level of the program + slope * f(d),    d = log(length of the answer / length of the uncompiled program's)

twice, since a judge's liking may go by how much longer an answer is, f(d) = tanh(d / root mean square of d), as in
AlpacaEval, or only by which one is longer, f(d) = the sign of d. The one whose interval begins lower is the gain.

The interval is `mean_interval` of the jackknife's pseudo-values, references being left out one at a time, which carry
the slope's uncertainty. Where a program's answers are longer throughout, but for two references at most, length and
quality cannot be told apart, and the interval is infinite. `benchmarks/promotion.py` measures all this; with a slope
that rests on two references a judge that is partly swayed by length is believed in 4% of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refed_dspy.measures.intervals import Floats, Interval, mean_interval
from refed_dspy.records import Compared

LEAST_OVERLAP = 3
"""The fewest clusters in which an answer of the new program is no longer than the old one's longest."""
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class _Verdicts:
    """All verdicts, one a row. `pull`: how far a unit of f(d) moves the gain of the row's cluster."""

    cluster: NDArray[np.intp]
    new: NDArray[np.bool_]
    win: Floats
    longer: Floats
    weight: Floats
    pull: Floats

    def without(self, cluster: int) -> _Verdicts:
        kept = self.cluster != cluster
        return _Verdicts(*(column[kept] for column in vars(self).values()))


def equal_length_gain(
    gains: Mapping[str, float],
    new: Mapping[str, Compared],
    old: Mapping[str, Compared],
    clusters: Mapping[str, Hashable],
    *,
    seed: int = 0,
) -> Interval:
    """The mean of `gains` (example → score of the new program less that of the old one) at equal length, with its 95%
    interval by cluster (see above); infinite where that cannot be told.

    `new` and `old` hold the verdicts behind the scores; an example may lack them, and where all of `new` do nothing
    tells how long its answers are. Raises ValueError without a gain.
    """
    gains = dict(sorted(gains.items()))  # the order in which answers arrived must not change the last digit
    names = list(dict.fromkeys(clusters[example] for example in gains))
    number = {name: index for index, name in enumerate(names)}
    of_cluster = np.array([number[clusters[example]] for example in gains], dtype=np.intp)
    sizes = np.bincount(of_cluster)
    means = np.bincount(of_cluster, list(gains.values())) / sizes
    rows = _rows([number[clusters[example]] for example in gains], [(new.get(e), old.get(e)) for e in gains], sizes)
    level = {clusters[example] for example in gains if _overlap(new.get(example), old.get(example))}
    if len(names) == 1 or len(level) < min(LEAST_OVERLAP, len(names)):
        return Interval(float(means.mean()), -math.inf, math.inf, len(gains), len(names))
    intervals = [_interval(means, rows, f, seed) for f in (_by_how_much, np.sign)]
    lowest = min(intervals, key=lambda each: each.low)
    return Interval(lowest.mean, lowest.low, lowest.high, len(gains), len(names))


def _rows(
    of_cluster: Sequence[int], compared: Sequence[tuple[Compared | None, Compared | None]], sizes: NDArray[Any]
) -> _Verdicts:
    rows: list[tuple[float, ...]] = []
    for cluster, pair in zip(of_cluster, compared, strict=True):
        for is_new, one in zip((1, 0), pair, strict=True):
            if one is None:
                continue
            for win, longer in one.verdicts:
                share = 1 / (len(one.verdicts) * sizes[cluster])
                rows.append((cluster, is_new, win, longer, share, (1 if is_new else -1) * one.weight * share))
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return _Verdicts(table[:, 0].astype(np.intp), table[:, 1] > 0, *table[:, 2:].T)


def _overlap(new: Compared | None, old: Compared | None) -> bool:
    """Whether an answer of the new program is no longer than the old one's longest."""
    longest = max((longer for _, longer in old.verdicts), default=0.0) if old is not None else 0.0
    return new is not None and any(longer <= longest for _, longer in new.verdicts)


def _interval(means: Floats, rows: _Verdicts, f: Callable[[Floats], Floats], seed: int) -> Interval:
    n = len(means)
    whole = _gain(means, rows, f)
    left_out = [_gain(np.delete(means, cluster), rows.without(cluster), f) for cluster in range(n)]
    return mean_interval([n * whole - (n - 1) * each for each in left_out], seed=seed)


def _gain(means: Floats, rows: _Verdicts, f: Callable[[Floats], Floats]) -> float:
    """The gain less what length gave."""
    factor = f(rows.longer)
    within, wins = _within(factor, rows), _within(rows.win, rows)
    spread = float(rows.weight @ within**2)
    slope = float(rows.weight @ (within * wins)) / spread if spread > _NO_SPREAD else 0.0
    return float(means.mean() - slope * (rows.pull @ factor) / len(means))


def _within(values: Floats, rows: _Verdicts) -> Floats:
    """`values` less their program's mean: each program has a level of its own."""
    centred = values.copy()
    for program in (rows.new, ~rows.new):
        if program.any():
            centred[program] -= np.average(values[program], weights=rows.weight[program])
    return centred


def _by_how_much(longer: Floats) -> Floats:
    scale = math.sqrt(float(np.mean(longer**2))) if longer.size else 0.0
    return np.tanh(longer / scale) if scale > _NO_SPREAD else longer
