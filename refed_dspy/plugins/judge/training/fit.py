"""Fits a judge's corrections to what people said: ordinal logistic regression, as a binary one over extended rows.

An example with levels 1 to K becomes K - 1 rows, one a threshold: is its level above k? Each has the example's figures
and an indicator of its threshold, whose coefficient is the threshold (Li & Lin 2007, "Ordinal Regression by Extended
Binary Classification"). Shares of people are weights of rows. The strength of the L2 penalty has the least log loss in
a cross-validation by instruction; thresholds are hardly penalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from refed_dspy.plugins.judge.correction import Correction, Term, standardised
from refed_dspy.plugins.judge.training.people import Shares

Floats = NDArray[np.float64]
STRENGTHS = tuple(float(strength) for strength in np.logspace(-4, 2, 13))
"""What is tried as scikit-learn's C: the smaller, the stronger the penalty."""
FOLDS = 5
_FREE = 10.0
"""The indicators of thresholds have this value, so that the penalty on a threshold is a hundredth of a figure's."""


@dataclass(frozen=True)
class Example:
    """A judgement to learn from: its figures, the share of people at each level, and its instruction."""

    figures: Mapping[str, float]
    shares: Shares
    instruction: str

    def exchanged(self) -> Example:
        """The same with its two answers exchanged."""
        return Example({name: -value for name, value in self.figures.items()}, self.shares[::-1], self.instruction)


def fit_pairs(examples: Sequence[Example]) -> Correction:
    """The correction of comparisons. Each example counts in both orders, so that neither side can be preferred."""
    fitted = _fit(_Rows.of([*examples, *(example.exchanged() for example in examples)]))
    half = _short((fitted.thresholds[-1] - fitted.thresholds[0]) / 2)
    terms = {name: term.model_copy(update={"mean": 0.0}) for name, term in fitted.terms.items()}
    return Correction(terms=terms, thresholds=(-half, half))


def fit_grades(examples: Sequence[Example]) -> Correction:
    """The correction of single answers."""
    return _fit(_Rows.of(examples))


@dataclass(frozen=True)
class _Rows:
    """The extended rows: values (figures, then indicators), whether the level is above, weights, and clusters."""

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    values: Floats
    above: NDArray[np.bool_]
    weights: Floats
    clusters: NDArray[Any]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        """A figure that is the same in all examples is left out. One that is NaN in some is standardised by the others,
        and 0 there, as in `standardised`."""
        table = np.ma.masked_invalid([list(example.figures.values()) for example in examples])
        varied = np.ma.filled(np.ma.ptp(table, axis=0), 0.0) > 0
        names = tuple(name for name, varies in zip(examples[0].figures, varied, strict=True) if varies)
        known = table[:, varied]
        means, scales = np.ma.getdata(known.mean(axis=0)), np.ma.getdata(known.std(axis=0))
        figures = np.ma.filled(np.clip((known - means) / scales, *_range()), 0.0)
        extended = list(_extended(figures, np.array([example.shares for example in examples])))
        values, above, weights = (np.concatenate(parts) for parts in zip(*extended, strict=True))
        clusters = np.tile([example.instruction for example in examples], len(extended))
        used = weights > 0
        return cls(
            names=names,
            means=tuple(map(_short, means.tolist())),
            scales=tuple(map(_short, scales.tolist())),
            values=values[used],
            above=above[used],
            weights=weights[used],
            clusters=clusters[used],
        )


def _range() -> tuple[float, float]:
    return standardised(-np.inf, 0, 1), standardised(np.inf, 0, 1)


def _extended(figures: Floats, shares: Floats) -> Iterator[tuple[Floats, NDArray[np.bool_], Floats]]:
    """For each threshold and each answer to it: the values, the answer, and the share of people who gave it."""
    thresholds = shares.shape[1] - 1
    for threshold in range(thresholds):
        indicators = np.zeros((len(figures), thresholds))
        indicators[:, threshold] = -_FREE
        values = np.hstack([figures, indicators])
        below = shares[:, : threshold + 1].sum(axis=1)
        yield values, np.ones(len(figures), dtype=bool), 1 - below
        yield values, np.zeros(len(figures), dtype=bool), below


def _fit(rows: _Rows) -> Correction:
    coefficients = _regression(rows, slice(None), _best_strength(rows)).coef_[0].tolist()
    of_figures, of_thresholds = coefficients[: len(rows.names)], coefficients[len(rows.names) :]
    terms = {
        name: Term(mean=mean, scale=scale, coefficient=_short(coefficient))
        for name, mean, scale, coefficient in zip(rows.names, rows.means, rows.scales, of_figures, strict=True)
    }
    # In order they are by themselves, but for rounding: those around a level that nobody used are equal.
    ascending = np.maximum.accumulate([_FREE * each for each in of_thresholds]).tolist()
    return Correction(terms=terms, thresholds=tuple(map(_short, ascending)))


def _best_strength(rows: _Rows) -> float:
    """Of STRENGTHS the one with the least log loss on instructions that were left out."""
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold

    folds = min(FOLDS, len(set(rows.clusters.tolist())))
    splits = [
        (train, test)
        for train, test in GroupKFold(folds).split(rows.values, groups=rows.clusters)
        if len(set(rows.above[train].tolist())) == 2
    ]

    def loss(strength: float) -> float:
        total = 0.0
        for train, test in splits:
            chances = _regression(rows, train, strength).predict_proba(rows.values[test])
            total += log_loss(
                rows.above[test], chances, sample_weight=rows.weights[test], labels=[False, True], normalize=False
            )
        return total

    return min(STRENGTHS, key=loss)


def _regression(rows: _Rows, chosen: Any, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=strength, fit_intercept=False, solver="newton-cholesky")
    return regression.fit(rows.values[chosen], rows.above[chosen], sample_weight=rows.weights[chosen])


def _short(value: float) -> float:
    """Ten digits: the rest is noise, and differs between machines."""
    return float(f"{value:.10g}")
