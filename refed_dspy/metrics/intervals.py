"""Confidence intervals and correlations. Gains have an interval of their own: metrics/gains.py.

Scores of the same reference are alike, so references are the units of the sample (clusters), and each counts the same,
however many values it has. The interval of a mean is the percentile bootstrap over cluster means, expanded for few
clusters after Hesterberg (2014), "What Teachers Should Know about the Bootstrap": the level alpha / 2 becomes
Phi(-sqrt(n / (n - 1)) * t), t being Student's quantile at 1 - alpha / 2 with n - 1 degrees of freedom.

The bootstrap's means never leave the range of the n means. Where even that range contains the true mean too rarely
(below 6 clusters, see `_STANDS_ALONE`) the interval is the wider of this one and Student's. How often it lies wholly on
one side of the true mean, in 20,000 simulated samples each (both sides counted; intended: 2.5% a side; win/tie/loss:
four outcomes a reference):

    clusters                          5      6      7      8
    normal, percentile              4.0%   3.3%   3.1%   2.8%
    normal, wider                   2.4%   2.4%   2.5%   2.3%
    win/tie/loss, percentile        3.8%   2.9%   2.5%   2.3%
    win/tie/loss, wider             3.2%   2.5%   2.4%   2.2%
    mostly ties, percentile         2.8%   3.3%   3.2%   3.0%
    t with 2 degrees, percentile    3.9%   3.4%   3.3%   3.3%
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 9_999
_ALPHA = 0.05
_STANDS_ALONE = 6
"""With fewer means, distributed symmetrically about the true one, all lie on one side of it more often than _ALPHA: n
of them once in 2**(n - 1) times."""
_AT_ONCE = 2_000_000  # resampled values held in memory at once: 16 MB


@dataclass(frozen=True)
class Interval:
    """A mean, or a share, between `low` and `high`; from `n` values of `clusters` clusters."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int

    @classmethod
    def of_stored(cls, stored: Mapping[str, Any]) -> Self:
        """The one that was stored as JSON, where an infinite end is None."""
        low, high = stored["low"], stored["high"]
        ends = {"low": -math.inf if low is None else low, "high": math.inf if high is None else high}
        return cls(**{**stored, **ends})

    @property
    def bounded(self) -> bool:
        """Whether it has two ends: from a single cluster it has none."""
        return self.clusters > 1 and math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def ends(self) -> str:
        """Both ends for people."""
        return f"{self.low:z.2f} to {self.high:z.2f}" if self.bounded else "no interval"

    def shown(self, digits: int = 2, unit: str = "", sign: str = "") -> str:
        """The mean with its `unit`, and both ends in brackets, if it has any."""
        mean, low, high = (f"{value:{sign}z.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean}{unit} ({low} to {high})" if self.bounded else f"{mean}{unit}"

    def __str__(self) -> str:
        return f"{self.mean:z.2f} ({self.ends})"


@dataclass(frozen=True)
class Correlation:
    """How two lists of numbers correlate, from -1 to 1; None where it is undefined."""

    pearson: float | None
    spearman: float | None


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> Interval:
    """The mean of the cluster means, each cluster counting the same, and its 95% interval (see the module's docstring).

    `clusters` names each value's cluster; without it every value is a cluster of its own. The same values, clusters
    and `seed` give the same interval, whatever their order. One cluster says nothing of others: its interval is
    infinite. Clusters whose means are all equal give an interval of no width. Raises ValueError
    without a value, for one that is not finite, and for lists of two lengths.
    """
    means = cluster_means(values, clusters)
    mean, n = math.fsum(means) / len(means), len(means)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, len(values), n)
    if constant(means):
        return Interval(mean, mean, mean, len(values), n)
    low, high = _expanded_percentiles(means, seed)
    if n < _STANDS_ALONE:
        half = _student(n) * float(means.std(ddof=1)) / math.sqrt(n)
        low, high = min(low, mean - half), max(high, mean + half)
    return Interval(mean, low, high, len(values), n)


def share_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0) -> Interval:
    """`mean_interval` of values from 0 to 1, which stays in that range: Student's interval from few clusters may leave
    it, and from a single one it has no ends."""
    mean = mean_interval(values, clusters, seed=seed)
    return replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high))


def correlations(predicted: Sequence[float], observed: Sequence[float]) -> Correlation:
    """Pearson's r and Spearman's rho; both None for fewer than 3 pairs or where a side is constant.

    Raises ValueError for lists of two lengths and for a value that is not finite.
    """
    from scipy import stats

    if len(predicted) != len(observed):
        raise ValueError(f"{len(predicted)} predicted but {len(observed)} observed; both need the same number")
    if len(predicted) < 3:
        return Correlation(None, None)
    x, y = _numbers(predicted), _numbers(observed)
    if constant(x) or constant(y):
        return Correlation(None, None)
    return Correlation(float(stats.pearsonr(x, y).statistic), float(stats.spearmanr(x, y).statistic))


def _numbers(values: ArrayLike) -> Floats:
    """One dimension of finite numbers, at least one."""
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError("no numbers to average; pass at least one")
    if not np.isfinite(numbers).all():
        raise ValueError("a value is not a finite number; leave out rows without a score")
    return numbers


def cluster_means(values: Sequence[float], clusters: Sequence[Hashable] | None) -> Floats:
    """The clusters' means, ascending and summed exactly: the order in which answers arrived must not change the
    interval. Raises ValueError as `mean_interval`."""
    numbers = _numbers(values)
    if clusters is None:
        return np.sort(numbers)
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters; give one cluster per value")
    members: defaultdict[Hashable, list[float]] = defaultdict(list)
    for value, cluster in zip(numbers.tolist(), clusters, strict=True):
        members[cluster].append(value)
    return np.sort(np.array([math.fsum(group) / len(group) for group in members.values()]))


def constant(numbers: Floats) -> bool:
    """Whether all are equal but for the rounding of floats. `numbers` is not empty."""
    return bool(np.ptp(numbers) <= 1e-12 * np.abs(numbers).max())


def _student(n: int) -> float:
    """Student's quantile at 1 - alpha / 2 for a mean of n."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 1 - _ALPHA / 2))


def expanded_level(n: int) -> float:
    """The share of a bootstrap's resamples of `n` clusters, at least 2, beyond each end of a 95% interval."""
    from scipy.special import ndtr

    return float(ndtr(-math.sqrt(n / (n - 1)) * _student(n)))


def _expanded_percentiles(means: Floats, seed: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    n, level = len(means), expanded_level(len(means))
    drawn: Any = bootstrap(
        (means,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _AT_ONCE // n),
        confidence_level=1 - 2 * level,
        method="percentile",
        random_state=np.random.default_rng(seed),  # newer SciPy calls it rng, and takes this name too
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
