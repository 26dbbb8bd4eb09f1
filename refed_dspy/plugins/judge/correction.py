"""The correction of a trained judge: a model of people's verdicts, small enough to be applied without any library.

It is ordinal logistic regression (proportional odds, McCullagh 1980). With figures x, standardised and cut off, and
thresholds t(1) <= t(2) <= … between the levels, the worst first:

    P(level above k | x) = 1 / (1 + exp(t(k) - sum of coefficient * x))

A pair has three levels: B is better, a tie, A is better. Its figures have a mean of 0 and its thresholds are -t and t,
so that exchanging the answers exchanges the shares: no preference for a position can be left. Grades have five levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from refed_dspy.config.base import first_fault
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.records import Record

FARTHEST = 4.0
"""Standard deviations beyond which a figure counts no more: what training hardly ever saw must not decide alone."""


class Term(Record):
    """A figure in a correction: how it is standardised, and its coefficient then."""

    mean: float = Field(allow_inf_nan=False)
    scale: float = Field(gt=0, allow_inf_nan=False)
    coefficient: float = Field(allow_inf_nan=False)


class Correction(Record):
    """Terms by the names of their figures (`answer_figures`), and the thresholds between levels, ascending."""

    terms: Mapping[str, Term]
    thresholds: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _thresholds_ascend(self) -> Self:
        if not all(math.isfinite(each) for each in self.thresholds):
            raise ValueError("a threshold is not a finite number")
        if any(low > high for low, high in pairwise(self.thresholds)):
            raise ValueError("the thresholds do not ascend")
        return self

    def shares(self, figures: Mapping[str, float]) -> tuple[float, ...]:
        """The probability of each level, the worst first; together 1. `figures` must have every term's; one that is NaN
        adds nothing."""
        score = math.fsum(
            term.coefficient * standardised(figures[name], term.mean, term.scale) for name, term in self.terms.items()
        )
        above = [_logistic(score - threshold) for threshold in self.thresholds]
        below = [_logistic(threshold - score) for threshold in self.thresholds]
        # The outer two are not taken from 1, so that exchanged answers have exactly exchanged shares.
        return (below[0], *(max(0.0, low - high) for low, high in pairwise(above)), above[-1])


def standardised(value: float, mean: float, scale: float) -> float:
    """`value` in standard deviations from its mean, cut off at FARTHEST; 0 for NaN: it is not known."""
    if math.isnan(value):
        return 0.0
    return max(-FARTHEST, min(FARTHEST, (value - mean) / scale))


def read_correction(value: Any, levels: int, figures: Mapping[str, float], source: str) -> Correction:
    """The correction that a file holds as `value`, for so many levels, whose terms are among `figures`.

    Raises ConfigError where it is damaged, or of a version with other figures.
    """
    try:
        correction = Correction.model_validate(value)
    except ValidationError as error:
        steps, message = first_fault(error)
        place = ".".join(map(str, steps))
        reason = one_line(f"{place}: {message}" if place else message, 160)
        raise ConfigError(f"program {source}: its correction is damaged: {reason}; train the judge again") from None
    if unknown := sorted(set(correction.terms) - set(figures)):
        what = f"reads {one_line(unknown[0], 40)}, which this version does not know"
    elif len(correction.thresholds) != levels - 1:
        what = f"is damaged: {len(correction.thresholds)} thresholds for {levels} levels"
    else:
        return correction
    raise ConfigError(f"program {source}: its correction {what}; train the judge again")


def _logistic(score: float) -> float:
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    odds = math.exp(max(score, -700.0))
    return odds / (1 + odds)
