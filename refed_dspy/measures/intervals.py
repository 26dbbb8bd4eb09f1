"""Confidence intervals and correlations. And the rule by which a gain is one.

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
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
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

    def ends(means: Floats, mean: float) -> tuple[float, float]:
        low, high = _expanded_percentiles(means, seed)
        if (n := len(means)) < _STANDS_ALONE:
            half = student(n) * float(means.std(ddof=1)) / math.sqrt(n)
            low, high = min(low, mean - half), max(high, mean + half)
        return low, high

    return _interval(values, clusters, ends)


def _interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None,
    ends: Callable[[Floats, float], tuple[float, float]],
) -> Interval:
    """The mean of the cluster means between the `ends` of these and their mean."""
    means = cluster_means(values, clusters)
    mean, n = math.fsum(means) / len(means), len(means)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, len(values), n)
    low, high = (mean, mean) if constant(means) else ends(means, mean)
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


def student(n: int) -> float:
    """Student's quantile at 1 - alpha / 2 for a mean of n."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 1 - _ALPHA / 2))


def expanded_level(n: int) -> float:
    """The share of a bootstrap's resamples of `n` clusters, at least 2, beyond each end of a 95% interval."""
    from scipy.special import ndtr

    return float(ndtr(-math.sqrt(n / (n - 1)) * student(n)))


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


# --- gains: their intervals, the rule that promotes a program, and how large a gain must be to be found
#
# References are few, and their gains need not be symmetrical: prompts often help a little almost everywhere, and do
# much harm in a few places. Every interval that ignores this promotes such prompts too often, even if they gain nothing
# on average. So the interval is Student's after Hall's transformation, which takes the skewness out of t (Hall 1992,
# "On the Removal of Skewness by Transformation"), and each of its ends errs in 0.75% of comparisons. With t = sqrt(n)
# (mean - true mean) / sd and a = skewness / sqrt(n),
#
#     z = t + a t**2 / 3 + a**2 t**3 / 27 + a / 6,    so    t = 3 / a * (cbrt(1 + a * (z - a / 6)) - 1),
#
# and z is nearly distributed as Student's t with n - 1 degrees of freedom.
#
# The share of promotions where nothing was gained, in 40,000 simulated comparisons each, and of promotions of a gain of
# 1.5 standard deviations (normal):
#
#     references                        5      6      8     12     16     24
#     normal                         1.2%   1.1%   1.0%   0.9%   0.8%   0.7%
#     t with 2.5 degrees             0.9%   0.9%   1.1%   1.3%   1.5%   1.4%
#     mirrored exponential           3.8%   3.1%   2.6%   1.9%   1.6%   1.3%
#     mirrored lognormal, sigma 0.8  4.9%   4.3%   3.9%   3.1%   2.7%   2.2%
#     win/tie/loss                   0.2%   0.3%   0.8%   1.1%   0.9%   0.7%
#     gain of 1.5 sd, found           37%    48%    68%    92%    98%   100%
#
# For the mirrored exponential Student's 95% interval has 11%, 12%, 10%, 10%, 8% and 7%, a bootstrap's about the same.
# What it takes for granted is that the references, or their topics if there are several of one
# (`optimizers.proof.find_topics`), are independent of each other.

MIN_CLUSTERS = 5
"""The fewest clusters that can promote. Where nothing was gained, n references all come out ahead once in 2**n
comparisons, and if all are ahead by the same amount no interval has a width: 3.1% for 5 of them, and 6.3% for 4, too
often for a proof."""
LEVEL = 0.9925
"""How sure each end of an interval is."""
USUAL_CHANCE = 0.8
"""The chance that one wants to have of finding a gain."""
_ROUNDING = 1e-9  # below this a gain is a rounding error: 0.1 + 0.2 - 0.3 is above zero
_SYMMETRICAL = 1e-6
_COMPARISONS = 4_000


def gain_interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """The mean of the cluster means, each cluster counting the same, and its 98.5% interval (see above).

    `clusters` names each value's cluster; without it every value is a cluster of its own. The order of the values
    changes nothing. One cluster says nothing of others: its interval is infinite. Clusters whose means are all equal
    give an interval of no width. Raises ValueError without a value, for one that is not finite, and for lists of two
    lengths.
    """

    def ends(means: Floats, _: float) -> tuple[float, float]:
        low, high = _ends(means[None, :])
        return float(low[0]), float(high[0])

    return _interval(values, clusters, ends)


def is_gain(gain: Interval) -> bool:
    """The rule that promotes: the whole interval lies above zero, and it has MIN_CLUSTERS or more."""
    return gain.clusters >= MIN_CLUSTERS and gain.low > _ROUNDING


def gain_or_change(mean: float) -> str:
    """What a mean difference is called where it is shown, to two digits: one below zero is no gain, and a "loss" of it
    would be denied twice."""
    return "change" if f"{mean:z.2f}".startswith("-") else "gain"


def within(interval: Interval, most: float = 1.0, least: float | None = None) -> Interval:
    """The interval of a mean of values that are from `least` to `most` (from -`most`, as differences are, where none is
    given): one from few clusters may leave that range. One without ends has none."""
    least = -most if least is None else least
    if math.isinf(interval.low) or math.isinf(interval.high):
        return interval
    return replace(interval, low=max(least, interval.low), high=min(most, interval.high))


def spread_of(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """The standard deviation of the cluster means; NaN for one cluster."""
    means = cluster_means(values, clusters)
    return float(means.std(ddof=1)) if len(means) > 1 else math.nan


def chance_of(gain: float, spread: float, clusters: int) -> float:
    """The chance, 0 to 1, that `gain` is found on so many clusters whose gains are normal with the standard deviation
    `spread`: the share of 4,000 simulated comparisons, always the same ones."""
    if clusters < MIN_CLUSTERS:
        return 0.0
    if spread <= 0:
        return float(gain > _ROUNDING)
    return float(np.mean(_lows(clusters) > -gain / spread))


def least_gain(spread: float, clusters: int, chance: float = USUAL_CHANCE) -> float:
    """The least gain that is found with this `chance`. Infinite where too few clusters can prove anything."""
    if clusters < MIN_CLUSTERS or math.isnan(spread):
        return math.inf
    return max(0.0, spread * float(-np.quantile(_lows(clusters), 1 - chance)))


def clusters_for(gain: float, spread: float, chance: float = USUAL_CHANCE, most: int = 1_000) -> int | None:
    """The fewest clusters on which `gain` is found with this `chance`; None if that takes more than `most`."""
    if least_gain(spread, most, chance) > gain:
        return None
    low, high = MIN_CLUSTERS - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if least_gain(spread, middle, chance) <= gain else (middle, high)
    return high


@lru_cache(maxsize=64)
def _lows(clusters: int) -> Floats:
    """The lower ends of the intervals of simulated comparisons without a gain, in standard deviations. A gain shifts an
    interval by as much."""
    draws = np.random.default_rng(clusters).normal(size=(_COMPARISONS, clusters))
    return _ends(draws)[0]


def _ends(values: Floats) -> tuple[Floats, Floats]:
    """The lower and upper ends for each row of `values`."""
    from scipy.special import stdtrit

    n = values.shape[1]
    mean = values.mean(axis=1)
    centred = values - mean[:, None]
    sd = np.sqrt((centred**2).sum(axis=1) / (n - 1))
    a = _skewness(centred) / math.sqrt(n)
    z = float(stdtrit(n - 1, LEVEL))
    return mean - sd / math.sqrt(n) * _as_t(z, a), mean - sd / math.sqrt(n) * _as_t(-z, a)


def _as_t(z: float, a: Floats) -> Floats:
    """The t that Hall's transformation makes `z` of."""
    symmetrical = np.abs(a) < _SYMMETRICAL
    skewed = np.where(symmetrical, 1.0, a)
    return np.where(symmetrical, z, 3 / skewed * (np.cbrt(1 + skewed * (z - skewed / 6)) - 1))


def _skewness(centred: Floats) -> Floats:
    """The adjusted Fisher-Pearson coefficient of each row, 0 of two values."""
    n = centred.shape[1]
    if n < 3:
        return np.zeros(len(centred))
    second, third = (centred**2).mean(axis=1), (centred**3).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        biased = np.where(second > 0, third / second**1.5, 0.0)
    return np.asarray(biased * math.sqrt(n * (n - 1)) / (n - 2))
