"""Judges that were trained on people's verdicts: compiled prompts, and corrections over what their model answers.

The model is asked exactly as it would be without a correction, so its answers in a ledger serve both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from refed_dspy.config.scorer import ScorerConfig, Template
from refed_dspy.errors import ConfigError
from refed_dspy.plugins.judge import answer_figures
from refed_dspy.plugins.judge.answer_figures import PERPLEXITY
from refed_dspy.plugins.judge.correction import Correction, read_correction
from refed_dspy.plugins.metrics.perplexity import Scorer, log_perplexities
from refed_dspy.programs.judges import OVERALL, Criterion, Graded, PairwiseJudge, RubricJudge, Verdict

PAIRS, GRADES = "pairs", "grades"
"""What a correction is of."""
LogPerplexity = Callable[[str, str], Awaitable[float | None]]
"""(instruction, answer) → the mean negative log-likelihood of the answer's tokens, in nats; None: it cannot be told."""
_LEVELS = {PAIRS: 3, GRADES: 5}
_in_use = WeakValueDictionary[ScorerConfig, Scorer]()
"""The scorers of the judges in use: a worker of a cluster opens the same judge for each lease, and weights take a
while."""


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
        return self.rescored(verdict, answer_figures.of_pair(verdict.in_orders, answer_a, answer_b, nats_a, nats_b))

    def rescored(self, verdict: Verdict, figures: Mapping[str, float]) -> Verdict:
        """What people are expected to say, by the `figures` of the comparison (`answer_figures.of_pair`)."""
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
        return self.rescored(graded, answer_figures.of_grading(graded.grade, text, context, nats))

    def rescored(self, graded: Graded, figures: Mapping[str, float]) -> Graded:
        """The grade that people are expected to give, by the `figures` of the text (`answer_figures.of_grading`)."""
        shares = self.corrections.by_name[GRADES].shares(figures)
        expected = sum(grade * share for grade, share in enumerate(shares, start=1))
        return replace(graded, grade=round(expected), expected=expected)


def trained_judge_of(corrections: Any, source: str) -> TrainedJudge:
    """The judge with the corrections that a file holds, and its own prompts. Raises ConfigError where they are none."""
    if not isinstance(corrections, dict) or PAIRS not in corrections or not set(corrections) <= set(_LEVELS):
        raise ConfigError(f"program {source}: its corrections are damaged; train the judge again")
    figures = {PAIRS: answer_figures.of_pair((0, 0), "", ""), GRADES: answer_figures.of_grading(1, "", "")}
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
