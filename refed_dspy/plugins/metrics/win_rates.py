"""Win rates: plain ones with intervals, and length-controlled ones.

A win is a number from 0 (lost) to 1 (won), a tie 0.5; a rate is a percentage. Verdicts on the same reference or
instruction are alike: name it in `clusters`, and each counts the same, as in `refed_dspy.measures.intervals`.

Length control (Dubois et al., "Length-Controlled AlpacaEval", 2024) is the logistic model

    P(win) = sigmoid(beta * tanh(dlen / sd(dlen)) + theta)
    LC     = 100 * P(win) where dlen = 0

AlpacaEval's has another term: the instructions' difficulties, which it fits once, over the judgements of many models,
and publishes. Here the model is fitted to the wins passed in and nothing else: the result is not comparable with
published LC win rates.

A normal prior of mean 0 (a ridge) keeps every estimate finite: standard deviation 2 for beta, 5 for theta. It
has little weight: 18 wins of 20 give 89.6 where lengths play no part. With few clusters it keeps beta near 0, hence LC
near the plain win rate.

The interval is a bootstrap over clusters of the fit's first-order change by each of them (the infinitesimal jackknife),
on the scale of the logit, so that it stays within 0 and 100. How often the true LC was inside the 95% interval, of
1,000 simulated comparisons (normal dlen whose mean is half its sd, and wins drawn with the beta and theta listed):

    clusters                10      20      50     200
    beta 0.8, theta 0.4    93%     96%     96%     95%
    beta 2, theta 0        94%     95%     97%     95%
    beta 0.5, theta 2      65%     84%     92%     96%

The last is a true LC of 88: ten draws often hold wins only, and then no interval has a width.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refed_dspy.measures.intervals import Interval, mean_interval
from refed_dspy.text import counted

Floats = NDArray[np.float64]

LC_NOTE = (
    "Length-controlled win rates are fitted on these comparisons alone, without AlpacaEval's instruction difficulties: "
    "compare them with each other, never with published ones, from which they are 6.5 points off on average."
)
"""Belongs under every table and picture that shows one."""
LEAST_CLUSTERS = 10
"""With fewer, a slope by length cannot be distinguished from chance."""
_RIDGE = 1 / np.array([2.0, 5.0]) ** 2
"""One over the variances of the prior of beta and theta."""


@dataclass(frozen=True)
class LengthControlled:
    """A win rate at equal length. `note` is empty, or says why there is no estimate, or what limits it."""

    interval: Interval | None
    """In percent, with the estimate as its mean. None where there is no estimate."""
    beta: float | None
    """How far the longer answer is preferred (above 0) or the shorter one; None where it was not fitted."""
    note: str = ""


def win_rate(wins: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0) -> Interval:
    """The plain win rate in percent, 0 to 100, with its 95% interval: `mean_interval` of 100 * wins, each checked.

    Raises ValueError without a win, for one outside 0 to 1, and for lists of two lengths.
    """
    interval = mean_interval((100 * _wins(wins)).tolist(), clusters, seed=seed)
    low, high = max(0.0, interval.low), min(100.0, interval.high)
    return Interval(interval.mean, low, high, interval.n, interval.clusters)


@dataclass(frozen=True)
class Preferences:
    """AlpacaEval's figures: the win rate and its standard error in percent (nan of one preference), and of how many."""

    win_rate: float
    standard_error: float
    n: int


def preferences(given: Sequence[float]) -> Preferences:
    """The figures of preferences as AlpacaEval has them: from 1 (the baseline's answer is better) to 2 (the model's); 0
    is a tie, as 1.5 is. The win rate is 100 * mean(p - 1), its error the sd with n - 1 below it over the root of n.

    Raises ValueError without one, and for any other number.
    """
    array = np.asarray(given, dtype=np.float64)
    wins = np.where(array == 0, 1.5, array) - 1
    if array.ndim != 1 or array.size == 0 or not ((wins >= 0) & (wins <= 1)).all():
        raise ValueError("preferences must be numbers from 1 to 2, or 0 for a tie, at least one; leave out the others")
    error = float(wins.std(ddof=1)) / math.sqrt(wins.size) if wins.size > 1 else math.nan
    return Preferences(100 * math.fsum(wins) / wins.size, 100 * error, wins.size)


def length_controlled(
    wins: Sequence[float],
    length_differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> LengthControlled:
    """The win rate where both answers are equally long, with its 95% interval (see the module's docstring).

    `length_differences` are the answer's length less the baseline's, in any one unit. Not comparable with published LC
    win rates: show LC_NOTE beside it. The order of rows does not matter, and with the sides exchanged it is 100 less
    itself.

    Below LEAST_CLUSTERS there is no estimate. Where all comparisons ended alike, or all differ in length by the same,
    length and quality cannot be separated: the estimate is the plain win rate, with a note. Raises ValueError without a
    comparison, for a win outside 0 to 1, for a number that is not finite and for lists of two lengths.
    """
    won, differences = _wins(wins), _finite(length_differences, "length difference", len(wins))
    cluster_of = _cluster_numbers(clusters, len(wins))
    scaled = differences / (np.abs(differences).max() or 1.0)  # the square of a huge one would not be finite
    if (n := int(cluster_of.max()) + 1) < LEAST_CLUSTERS:
        groups = counted(n, "group of rows is", "groups of rows are")
        return LengthControlled(None, None, f"{groups} too few; a rate needs at least {LEAST_CLUSTERS}")
    if alike := _alike(won, scaled):
        return LengthControlled(win_rate(wins, clusters, seed=seed), None, f"{alike}: this is the plain win rate")
    weights = 1 / np.bincount(cluster_of)[cluster_of]
    rows = np.column_stack([np.tanh(scaled / _spread(scaled, weights)), np.ones(len(won))])
    fit, inverse = _fitted(rows, won, weights)
    logits = mean_interval(_by_cluster(rows, won, weights, cluster_of, fit, inverse), seed=seed)
    interval = Interval(_percent(fit[1]), _percent(logits.low), _percent(logits.high), len(won), n)
    always_longer = scaled.min() > 0 or scaled.max() < 0
    note = "one side is always longer, so nothing is known about equal length" if always_longer else ""
    return LengthControlled(interval, float(fit[0]), note)


def _finite(numbers: Sequence[float], noun: str, n: int) -> Floats:
    array = np.asarray(numbers, dtype=np.float64)
    if array.shape != (n,):
        raise ValueError(f"{n} wins need as many numbers for their {noun}; {len(numbers)} were given")
    if not np.isfinite(array).all():
        raise ValueError(f"a {noun} is not a finite number; leave out the comparisons that have none")
    return array


def _wins(wins: Sequence[float]) -> Floats:
    array = _finite(wins, "win", len(wins))
    if array.size == 0 or array.min() < 0 or array.max() > 1:
        raise ValueError("wins must be a list of numbers from 0 to 1, a tie 0.5, and hold at least one")
    return array


def _cluster_numbers(clusters: Sequence[Hashable] | None, n: int) -> NDArray[np.intp]:
    """The number of each row's cluster, from 0."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{n} wins but {len(clusters)} clusters; give one cluster per win")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])


def _alike(won: Floats, scaled: Floats) -> str:
    """Why no slope can be fitted; empty where one can."""
    if np.ptp(won) <= 1e-12:
        return "all comparisons ended the same way"
    return "all answers differ in length by the same amount" if np.ptp(scaled) <= 1e-12 else ""


def _spread(numbers: Floats, weights: Floats) -> float:
    """The weighted standard deviation."""
    centre = np.average(numbers, weights=weights)
    return math.sqrt(np.average((numbers - centre) ** 2, weights=weights))


def _probabilities(rows: Floats, fit: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(rows @ fit))


def _fitted(rows: Floats, won: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """The most probable coefficients, and the inverse of the information there. The loss is strictly convex."""
    from scipy.optimize import minimize

    def loss(fit: Floats) -> float:
        logits = rows @ fit
        return float(weights @ (np.logaddexp(0, logits) - won * logits) + _RIDGE @ fit**2 / 2)

    def gradient(fit: Floats) -> Floats:
        return rows.T @ (weights * (_probabilities(rows, fit) - won)) + _RIDGE * fit

    def information(fit: Floats) -> Floats:
        p = _probabilities(rows, fit)
        return rows.T @ (rows * (weights * p * (1 - p))[:, None]) + np.diag(_RIDGE)

    close = {"gtol": 1e-8 * float(weights.sum())}  # just above what rounding leaves of the loss
    start = np.zeros(rows.shape[1])
    result = minimize(loss, start, jac=gradient, hess=information, method="trust-exact", options=close)
    fit: Floats = result.x
    return fit, np.asarray(np.linalg.inv(information(fit)))


def _by_cluster(
    rows: Floats, won: Floats, weights: Floats, cluster_of: NDArray[np.intp], fit: Floats, inverse: Floats
) -> list[float]:
    """For each cluster theta plus n times the cluster's first-order effect on it, n being the number of clusters; their
    mean is theta. A cluster changes the coefficients by its score, less its share of the prior, through the
    information."""
    n = cluster_of.max() + 1
    scores = rows * (weights * (won - _probabilities(rows, fit)))[:, None]
    by_cluster = np.column_stack([np.bincount(cluster_of, column) for column in scores.T]) - _RIDGE * fit / n
    moved: list[float] = (fit[1] + n * by_cluster @ inverse[:, 1]).tolist()
    return moved


def _percent(logit: float) -> float:
    from scipy.special import expit

    return 100 * float(expit(logit))
