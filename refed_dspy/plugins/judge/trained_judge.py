"""Judges that were trained on people's verdicts: compiled prompts, and corrections over what their model answers.

The model is asked exactly as it would be without a correction, so its answers in a ledger serve both. A correction
weighs what the model said beside cheap figures of the answers: length, Markdown, likeness. It is a model of people's
verdicts, small enough to be applied without any library: ordinal logistic regression (proportional odds, McCullagh
1980). With figures x, standardised and cut off, and thresholds t(1) <= t(2) <= … between the levels, the worst first:

    P(level above k | x) = 1 / (1 + exp(t(k) - sum of coefficient * x))

A pair has three levels: B is better, a tie, A is better. Its figures have a mean of 0 and its thresholds are -t and t,
so that exchanging the answers exchanges the shares: no preference for a position can be left. Grades have five levels.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self
from weakref import WeakValueDictionary

from pydantic import Field, ValidationError, model_validator

from refed_dspy.config.base import first_fault
from refed_dspy.config.scorer import ScorerConfig, Template
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.plugins.metrics.perplexity import Scorer, log_perplexities
from refed_dspy.programs.judges import OVERALL, Criterion, Graded, PairwiseJudge, RubricJudge, Verdict
from refed_dspy.records import Record

PAIRS, GRADES = "pairs", "grades"
"""What a correction is of."""
LogPerplexity = Callable[[str, str], Awaitable[float | None]]
"""(instruction, answer) → the mean negative log-likelihood of the answer's tokens, in nats; None: it cannot be told."""
_LEVELS = {PAIRS: 3, GRADES: 5}
_in_use = WeakValueDictionary[ScorerConfig, Scorer]()
"""The scorers of the judges in use: a worker of a cluster opens the same judge for each lease, and weights take a
while."""
FARTHEST = 4.0
"""Standard deviations beyond which a figure counts no more: what training hardly ever saw must not decide alone."""
_MARKDOWN = {
    "list_items": re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE),
    "headings": re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+\S", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
}
_COMPARED = 20_000
PERPLEXITY = "log_perplexity"
"""The figure that takes a model to compute; NaN where it is not known."""
VERDICT, LENGTH = "the judge's verdict", "length"
FIGURES = {
    VERDICT: ("preference", "winner", "preference_where_orders_disagree", "preference_by_likeness"),
    LENGTH: ("length", "longer"),
    "style": (*_MARKDOWN, "markdown"),
    "perplexity": (PERPLEXITY,),
}
"""The figures of a comparison by what they are of: what the judge answered, or the two texts."""


@dataclass
class Corrections:
    """A trained judge's corrections: of pairs, and of grades if people's were there to learn from."""

    by_name: Mapping[str, Correction]
    log_perplexity: LogPerplexity | None = None
    """What computes it, where a correction reads it."""

    def __deepcopy__(self, memo: object) -> Corrections:
        """The same: a copy of the judge, for an optimizer say, shares the model of the perplexities."""
        return self

    @property
    def read_perplexity(self) -> bool:
        """Whether they were fitted with the perplexity of answers, and need it."""
        return any(PERPLEXITY in correction.terms for correction in self.by_name.values())

    async def nats(self, name: str, instruction: str, answer: str) -> float | None:
        """The log-perplexity where this correction reads it. Raises ConfigError where nothing computes it."""
        if PERPLEXITY not in self.by_name[name].terms:
            return None
        if self.log_perplexity is None:
            raise ConfigError("judge: it was trained with perplexities, and there is no model that computes them")
        return await self.log_perplexity(instruction, answer)

    def state(self) -> dict[str, Any]:
        """The corrections in JSON types."""
        return {name: correction.model_dump(mode="json") for name, correction in self.by_name.items()}


class TrainedJudge(PairwiseJudge):
    """A pairwise judge whose verdict is what people are expected to say.

    `preference` is 2 * (P(A is better) - P(B is better)), and 0 where a tie is the likeliest. Exchanging the answers
    turns its sign, exactly. `consistent` is the model's, as are abstentions and failures: they get no verdict here
    either. `rubric` is there where grades were trained on, too.
    """

    def __init__(self, corrections: Corrections) -> None:
        super().__init__()
        self.corrections = corrections
        if GRADES in corrections.by_name:
            self.rubric = TrainedRubric(corrections)

    @property
    def needs_scorer(self) -> bool:
        """As `PairwiseJudge.needs_scorer`."""
        return bool(self.corrections.read_perplexity)

    def use_scorer(self, scorer: ScorerConfig) -> None:
        """As `PairwiseJudge.use_scorer`."""
        self.corrections.log_perplexity = log_perplexity_by(_opened(scorer), scorer.template)

    async def judge(
        self, instruction: str, answer_a: str, answer_b: str, criterion: Criterion = OVERALL, item: str = ""
    ) -> Verdict:
        """As `PairwiseJudge.judge`."""
        verdict = await super().judge(instruction, answer_a, answer_b, criterion, item)
        if verdict.in_orders is None:
            return verdict
        nats_a = await self.corrections.nats(PAIRS, instruction, answer_a)
        nats_b = await self.corrections.nats(PAIRS, instruction, answer_b)
        return self.rescored(verdict, pair_figures(verdict.in_orders, answer_a, answer_b, nats_a, nats_b))

    def rescored(self, verdict: Verdict, figures: Mapping[str, float]) -> Verdict:
        """What people are expected to say, by the `figures` of the comparison (`pair_figures`)."""
        return replace(verdict, preference=preference_by(self.corrections.by_name[PAIRS], figures))


def preference_by(correction: Correction, figures: Mapping[str, float]) -> float:
    """Which answer people are expected to prefer by a correction of pairs, from 2 (A) to -2."""
    b_better, tie, a_better = correction.shares(figures)
    return 0.0 if tie >= max(a_better, b_better) else 2 * (a_better - b_better)


class TrainedRubric(RubricJudge):
    """A judge of single answers whose grade is the one that people are expected to give, rounded."""

    def __init__(self, corrections: Corrections) -> None:
        super().__init__()
        self.corrections = corrections

    async def judge(self, text: str, context: str, criterion: Criterion, item: str = "") -> Graded:
        """As `RubricJudge.judge`."""
        graded = await super().judge(text, context, criterion, item)
        if graded.grade is None:
            return graded
        nats = await self.corrections.nats(GRADES, context, text)
        return self.rescored(graded, grading_figures(graded.grade, text, context, nats))

    def rescored(self, graded: Graded, figures: Mapping[str, float]) -> Graded:
        """The grade that people are expected to give, by the `figures` of the text (`grading_figures`)."""
        shares = self.corrections.by_name[GRADES].shares(figures)
        expected = sum(grade * share for grade, share in enumerate(shares, start=1))
        return replace(graded, grade=round(expected), expected=expected)


def trained_judge_of(corrections: Any, source: str) -> TrainedJudge:
    """The judge with the corrections that a file holds, and its own prompts. Raises ConfigError where they are none."""
    if not isinstance(corrections, dict) or PAIRS not in corrections or not set(corrections) <= set(_LEVELS):
        raise ConfigError(f"program {source}: its corrections are damaged; train the judge again")
    figures = {PAIRS: pair_figures((0, 0), "", ""), GRADES: grading_figures(1, "", "")}
    read = {name: read_correction(value, _LEVELS[name], figures[name], source) for name, value in corrections.items()}
    return TrainedJudge(Corrections(read))


def _opened(config: ScorerConfig) -> Scorer:
    """The scorer that is in use already, or a new one. Raises ConfigError."""
    from refed_dspy.plugins.metrics.figures import open_scorer  # NumPy and more come with it

    if (scorer := _in_use.get(config)) is None:
        scorer = _in_use[config] = open_scorer(config)
    return scorer


def log_perplexity_by(scorer: Scorer, template: Template) -> LogPerplexity:
    """What a trained judge asks for perplexities. It scores one answer at a time, in a thread."""

    async def log_perplexity(instruction: str, answer: str) -> float | None:
        return (await asyncio.to_thread(log_perplexities, scorer, [(instruction, answer)], template))[0]

    return log_perplexity


# --- the correction


class Term(Record):
    """A figure in a correction: how it is standardised, and its coefficient then."""

    mean: float = Field(allow_inf_nan=False)
    scale: float = Field(gt=0, allow_inf_nan=False)
    coefficient: float = Field(allow_inf_nan=False)


class Correction(Record):
    """Terms by the names of their figures, and the thresholds between levels, ascending."""

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


# --- the figures of answers


def pair_figures(
    in_orders: tuple[int, int],
    answer_a: str,
    answer_b: str,
    nats_a: float | None = None,
    nats_b: float | None = None,
) -> dict[str, float]:
    """The figures of a comparison; exchanging the answers turns every sign, and changes nothing else.

    `in_orders`: as in a `Verdict`. `nats_a`, `nats_b`: the mean negative log-likelihood of each answer's tokens, None
    where it is not known.

    `preference` and `winner` are the means over both orders of what the judge preferred, with and without its strength.
    They come a second time where the orders disagree, and weighted by how alike the answers are, since the judge may
    deserve less trust there. All others are differences, A less B: those of length and counts between logarithms.
    """
    first, second = in_orders
    preference, winner = (first + second) / 2, (_sign(first) + _sign(second)) / 2
    a, b = text_figures(answer_a), text_figures(answer_b)
    longer = a["length"] - b["length"]
    marked = {name: a[name] - b[name] for name in _MARKDOWN}
    return {
        "preference": preference,
        "winner": winner,
        "preference_where_orders_disagree": preference if _sign(first) != _sign(second) else 0.0,
        "preference_by_likeness": preference * likeness(answer_a, answer_b),
        "length": longer,
        "longer": math.tanh(longer),
        **marked,
        "markdown": float(_sign(math.fsum(marked.values()))),
        PERPLEXITY: math.nan if nats_a is None or nats_b is None else nats_a - nats_b,
    }


def grading_figures(grade: int, text: str, context: str, nats: float | None = None) -> dict[str, float]:
    """The figures of one text that a judge gave `grade`. `nats`: as for a pair."""
    return {
        "grade": float(grade),
        **text_figures(text),
        "likeness": likeness(text, context),
        PERPLEXITY: math.nan if nats is None else nats,
    }


def text_figures(text: str) -> dict[str, float]:
    """Logarithms of one more than the characters, list items, headings and bold passages of `text`."""
    counts = {name: math.log1p(len(pattern.findall(text))) for name, pattern in _MARKDOWN.items()}
    return {"length": math.log1p(len(text)), **counts}


def likeness(one: str, other: str) -> float:
    """The share of words, in order, that two texts have in common: ROUGE-L's F-measure, 0 to 1. Of longer texts the
    first 20,000 words are compared: the time grows with the product of both lengths."""
    from rapidfuzz.distance import Indel

    words = (text.lower().split()[:_COMPARED] for text in (one, other))
    return float(Indel.normalized_similarity(*words))


def _sign(preference: float) -> int:
    return (preference > 0) - (preference < 0)
