"""The metric for Reference-Level Feedback: is the final answer better than the one the uncompiled program gives?

For each of a reference's samples the judge compares the candidate's final answer with the *uncompiled program's* final
answer to the same instruction. So a candidate gains nothing by making the first response worse, and the baseline's own
score is known: it ties with itself. Grades of the instructions and their diversity are added, and longer answers'
wins count less: whether a gain is one at equal length is the proof's to tell (`measures.equal_length`).
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import statistics
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import dspy

from refed_dspy.concurrency import all_of, run_blocking, together
from refed_dspy.config.compile import MetricConfig
from refed_dspy.config.loading import check_config
from refed_dspy.errors import PASSING, CodeFailed, RefedError, RowError, one_line
from refed_dspy.optimizers.by_people import COMPILED, UNCOMPILED, JudgedPair
from refed_dspy.optimizers.metrics import ExampleScore, MetricScore, NotScored
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import about_call
from refed_dspy.programs.judges import (
    INSTRUCTION_CRITERIA,
    RESPONSE_CRITERIA,
    Criterion,
    Graded,
    Judgements,
    PairwiseJudge,
    RubricJudge,
    Verdict,
)
from refed_dspy.programs.own_code import code_failed, has_own_code
from refed_dspy.programs.question import PROGRAM
from refed_dspy.programs.synthesis import SynthesisProgram, as_reference
from refed_dspy.records import Compared, Reference, Sample

log = logging.getLogger("refed_dspy.optimizers")
TIE = 0.5
COMPONENTS = ("wins", "grades", "diversity")
T = TypeVar("T")
_WORD = re.compile(r"\w+")
INSTRUCTION_LENGTH, REASON_LENGTH = 240, 600
"""How many characters of an instruction, and of a judge's reason, are shown at most."""
MOST_GRADES = 6
"""How many grades are shown, the lowest first."""


@dataclass(frozen=True)
class JudgedSample:
    """The judge's verdict and grades of one sample. `verdict` is None where the uncompiled program had no answer, be it
    that the endpoint gave none, or that it failed (`baseline_failed`): its answer was cut, malformed or refused."""

    sample: Sample
    baseline: str | None
    verdict: Verdict | None
    grades: tuple[Graded, ...]
    baseline_failed: bool = False

    @property
    def win(self) -> float | None:
        """1 where the final answer won, 0.5 for a tie and where the uncompiled program failed, 0 where it lost; None
        where that was not decided."""
        if self.baseline_failed:
            return 0.5
        return None if self.verdict is None else self.verdict.win

    @property
    def length_ratio(self) -> float:
        """The final answer's length over that of the baseline's; 1 where there is no baseline."""
        return max(1, len(self.sample.improved_response)) / len(self.baseline) if self.baseline else 1.0

    def pair(self, reference: Reference) -> JudgedPair:
        """What the judge compared. There is a verdict."""
        assert self.verdict is not None
        return JudgedPair.of(
            reference.posed(self.sample.instruction),
            (COMPILED, self.sample.improved_response),
            (UNCOMPILED, self.baseline or ""),
            self.verdict.preference,
            reference.id,
        )


class BeatsBaseline:
    """A DSPy metric: is what a `SynthesisProgram` makes of one reference better than what it made before?

        metric = refed_dspy.BeatsBaseline(program, lms["teacher"], lms["judge"])
        dspy.GEPA(metric=metric, reflection_lm=lms["judge"], max_metric_calls=200)

    score = coverage x (weighted mean of wins, grades and diversity), each 0 to 1:

    - wins: 1, ½ or 0 a sample, pairwise against the uncompiled program, in both orders. What a longer answer's win adds
      to a tie is divided by the square of its length over the baseline's; `length_cost` is what that takes from the
      score.
    - grades: of each instruction by each criterion, 1 to 5 as 0 to 1.
    - diversity: 1 - the mean ROUGE-L (F) of each pair among a reference's instructions and its own.
    - coverage: samples made over samples asked for; those lost to an endpoint's failure do not count as asked for.

    Weights are shares of their sum, that of grades being 0 without criteria. Where the judge decided nothing of a
    component that has a weight there is no score: what is left of it would be another measure than the uncompiled
    program's. An instruction to which the uncompiled program failed to answer is a tie.

    Args:
        baseline: the uncompiled program, of which a copy is kept.
        teacher, judge: the language models that it is asked with, and that judge.
        config: the weights and rules, a `MetricConfig` or its fields.
        pairwise: a judge with prompts of its own.
    """

    def __init__(
        self,
        baseline: SynthesisProgram,
        teacher: dspy.LM,
        judge: dspy.LM,
        config: MetricConfig | Mapping[str, Any] | None = None,
        pairwise: PairwiseJudge | None = None,
    ) -> None:
        self.baseline, self.teacher, self.judge_lm = baseline.deepcopy(), teacher, judge
        config = config if isinstance(config, MetricConfig) else check_config(MetricConfig, config or {})
        self.config, self.accept = config, config.accept
        self.criteria = tuple(INSTRUCTION_CRITERIA.values())
        if config.criteria is not None:
            self.criteria = tuple(Criterion(name, text) for name, text in config.criteria.items())
        weights = {name: float(getattr(config, name)) for name in COMPONENTS if name != "grades" or self.criteria}
        self.shares = {name: weight / sum(weights.values()) for name, weight in weights.items() if weight}
        self.pairwise, self.rubric = pairwise or PairwiseJudge(), RubricJudge()
        self._recent: deque[tuple[Any, list[JudgedSample]]] = deque(maxlen=64)

    def __call__(
        self,
        example: dspy.Example,
        prediction: Any,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> MetricScore:
        """The score, as DSPy's evaluation and optimizers call a metric; with a `pred_name` also its feedback.

        Where the judge decided nothing there is no score. What is returned then is a tie's win alone, 0.5, with a
        warning, and it becomes no demonstration. (A compile returns the uncompiled program's own score instead, and
        `prove` leaves the example out.)
        """
        try:
            evaluation = self.score(example, prediction, trace)
        except NotScored as error:
            log.warning("not scored, and counted as a tie: %s", one_line(error))
            return MetricScore(TIE, one_line(f"It could not be judged: {error}"), math.inf)
        feedback = f"scored {evaluation.score:.2f}"
        if pred_name is not None:
            feedback = self.feedback(example, prediction, pred_name, pred_trace)
        return MetricScore.of(evaluation, feedback, self.accept)

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> ExampleScore:  # noqa: ARG002
        """The score of one reference's samples. Raises NotScored."""
        reference = as_reference(example.reference)
        return self._evaluation(reference, prediction, self._judge_once(reference, prediction))

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:
        """What the judge said about what `stage` contributed to. Verdicts on the same prediction are reused."""
        reference = as_reference(example.reference)
        inputs, outputs = (trace[0][1], trace[0][2]) if trace else ({}, {})
        judged = self._judge_once(reference, prediction)
        head = _summary(self._evaluation(reference, prediction, judged), prediction)
        written = _texts(outputs)
        chosen = [each for each in judged if each.sample.instruction.strip() in written]
        if chosen or stage in {"instruction_feedback", "instruction_synthesis"}:
            if outputs.get("new_instructions") and not chosen:
                return f"{head}\n\nNone of the instructions that this call wrote came to a final answer."
            return f"{head}\n\n{feedback_on_instructions(chosen or judged)}"
        asked = inputs.get("instruction")
        chosen = [each for each in judged if reference.posed(each.sample.instruction) == asked]
        if asked is not None and not chosen and asked != reference.shown:
            return f"{head}\n\nThe instruction that this call was for came to no final answer."
        chosen = chosen or worst_first(judged)[:2]
        graded = run_blocking(self._grade_answers(reference, chosen))
        return f"{head}\n\n{feedback_on_responses(chosen, graded)}"

    def _judge_once(self, reference: Reference, prediction: Any) -> list[JudgedSample]:
        """The judge's verdicts on a prediction's samples; those of a prediction judged recently are reused."""
        for recent_prediction, judged in list(self._recent):
            if recent_prediction is prediction:
                return judged
        judged = run_blocking(self._judge(reference, prediction.samples))
        self._recent.append((prediction, judged))
        return judged

    # --- asking the judge

    async def _judge(self, reference: Reference, samples: Sequence[Sample]) -> list[JudgedSample]:
        if not samples:
            return []
        instructions = [sample.instruction for sample in samples]
        with _metric_context():
            feedback = await self._of_baseline(self.baseline.collect_response_feedback(reference))
            return await all_of(self._judge_sample(reference, feedback, sample, instructions) for sample in samples)

    async def _judge_sample(
        self, reference: Reference, feedback: str | RowError, sample: Sample, siblings: Sequence[str]
    ) -> JudgedSample:
        answered = (
            feedback
            if isinstance(feedback, RowError)
            else await self._of_baseline(self.baseline.respond(reference, feedback, sample.instruction))
        )
        baseline = None if isinstance(answered, RowError) else answered.improved_response
        context = _instruction_context(reference, sample.instruction, siblings)
        asked = reference.posed(sample.instruction)
        with dspy.context(lm=self.judge_lm):
            async with together() as group:
                grades = [
                    group.create_task(self.rubric.judge(sample.instruction, context, criterion))
                    for criterion in self.criteria
                ]
                verdict = None
                if baseline is not None:
                    verdict = await self.pairwise.judge(asked, sample.improved_response, baseline)
            failed = isinstance(answered, RowError) and (answered.final or isinstance(answered, CodeFailed))
            return JudgedSample(sample, baseline, verdict, tuple(grade.result() for grade in grades), failed)

    async def _of_baseline(self, question: Coroutine[Any, Any, T]) -> T | RowError:
        """The answer to a `question` of the uncompiled program, or why there is none."""
        try:
            with dspy.context(lm=self.teacher), about_call(self.baseline):
                return await question
        except RowError as error:
            return error
        except Exception as error:
            if isinstance(error, RefedError) or not has_own_code(self.baseline):
                raise
            return code_failed(PROGRAM, "", error)

    async def _grade_answers(self, reference: Reference, judged: Sequence[JudgedSample]) -> list[list[Graded]]:
        with _metric_context(), dspy.context(lm=self.judge_lm):
            return await all_of(self._grade_answer(reference, each.sample) for each in judged)

    async def _grade_answer(self, reference: Reference, sample: Sample) -> list[Graded]:
        text, context = sample.improved_response, f"It answers: {reference.posed(sample.instruction)}"
        return await all_of(self.rubric.judge(text, context, each) for each in RESPONSE_CRITERIA.values())

    # --- arithmetic

    def _evaluation(self, reference: Reference, prediction: Any, judged: Sequence[JudgedSample]) -> ExampleScore:
        coverage = self._coverage(prediction)
        if not judged:
            return ExampleScore(0.0, {"coverage": 0.0}, objectives=dict.fromkeys((*COMPONENTS, "coverage"), 0.0))
        judgements = Judgements.of(one for each in judged for one in (each.verdict, *each.grades) if one is not None)
        wins = [each.win for each in judged if each.win is not None]
        components = {
            "wins": _mean(wins),
            "grades": _mean(grade.share for each in judged for grade in each.grades),
            "diversity": diversity([reference.instruction, *(each.sample.instruction for each in judged)]),
        }
        defined = {name: value for name, value in components.items() if not math.isnan(value)}
        if undecided := [name for name in self.shares if name not in defined]:
            why = judgements.why or "the endpoint gave the uncompiled program no answer"
            raise NotScored(f"{reference.id}: no {' and no '.join(undecided)} decided: {judgements}, {why}")
        score = coverage * sum(share * components[name] for name, share in self.shares.items())
        of_wins = coverage * self.shares.get("wins", 0.0)
        controlled = {"wins": _mean(map(_discounted, judged))} if "wins" in defined else {}
        length_cost = of_wins * (components["wins"] - controlled["wins"]) if controlled else 0.0
        verdicts = [
            (each.verdict.win, math.log(each.length_ratio))
            for each in judged
            if each.verdict is not None and each.verdict.win is not None
        ]
        return ExampleScore(
            score - length_cost,
            {
                **defined,
                "length_ratio": _mean(each.length_ratio for each in judged),
                "length_cost": length_cost,
                "coverage": coverage,
                "abstained": judgements.abstained / max(1, judgements.asked),
                "judge_failed": judgements.failed / max(1, judgements.asked),
            },
            Compared(of_wins * len(verdicts) / len(wins), verdicts) if verdicts else None,
            objectives={**defined, **controlled, "coverage": coverage},
            pairs=[each.pair(reference) for each in judged if each.verdict is not None],
        )

    def _coverage(self, prediction: Any) -> float:
        """Raises NotScored where all that was asked for was lost to the endpoint's failures."""
        asked = len(self.baseline.features) * self.baseline.instructions_per_feature
        each_stage = {"response_generation": 1, "response_improvement": 1}
        each_stage["instruction_synthesis"] = self.baseline.instructions_per_feature
        other = asked if prediction.feedback is None else 1
        passing = PASSING - {CodeFailed.kind}  # that of the program's own code is its fault
        lost = sum(each_stage.get(f.stage, other) for f in prediction.failures if f.kind in passing)
        if lost >= asked and not prediction.samples:
            raise NotScored("the endpoint gave no answer")
        return float(min(1.0, len(prediction.samples) / max(1, asked - lost)))


def _texts(outputs: Mapping[str, Any]) -> set[str]:
    """The texts that a predictor wrote, alone or in lists."""
    lists = (value if isinstance(value, list) else [value] for value in outputs.values())
    return {text.strip() for texts in lists for text in texts if isinstance(text, str)}


def diversity(texts: Sequence[str]) -> float:
    """1 - the mean ROUGE-L (F-measure, on words without case and punctuation) of all pairs; 0 for fewer than two."""
    from rapidfuzz.distance import Indel

    words = [_WORD.findall(text.lower()) for text in texts]
    pairs = [Indel.normalized_similarity(a, b) for a, b in itertools.combinations(words, 2)]
    return 1 - statistics.fmean(pairs) if pairs else 0.0


def worst_first(judged: Iterable[JudgedSample]) -> list[JudgedSample]:
    """Those whose final answer lost first, then ties, then the rest."""
    return sorted(judged, key=lambda each: 0.5 if each.verdict is None else each.verdict.preference or 0)


def _discounted(judged: JudgedSample) -> float | None:
    """The win, or less where its answer is longer. By the square: divided by the length alone, longer answers would pay
    up to twice the length with a judge whose liking grows slowly."""
    if (win := judged.win) is None or win <= 0.5:
        return win
    return 0.5 + (win - 0.5) / max(1.0, judged.length_ratio) ** 2


def _mean(values: Iterable[float | None]) -> float:
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else math.nan


def _instruction_context(reference: Reference, instruction: str, siblings: Sequence[str]) -> str:
    others = "\n".join(f"- {text}" for text in siblings if text != instruction) or "(none)"
    return f"The text is a new instruction, made after this reference:\n{reference.shown}\n\nIts siblings:\n{others}"


def _summary(evaluation: ExampleScore, prediction: Any) -> str:
    components = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in evaluation.components.items())
    failed = "".join(f"\nFailed: {f.stage}: {f.kind}: {f.reason}" for f in prediction.failures[:3])
    return f"The program scored {evaluation.score:.2f} of 1 on this reference ({components}).{failed}"


def _metric_context() -> Any:
    """Settings for the metric's own calls: they are in no trace or history, and no callback sees them."""
    # The candidate's adapter: with another one the baseline's recorded answers would not be reused.
    adapter = dspy.settings.adapter or SchemaAdapter()
    return dspy.context(
        trace=None, max_trace_size=0, disable_history=True, callbacks=[], track_usage=False, adapter=adapter
    )


# --- feedback for the model that rewrites prompts: short, since every token costs


def feedback_on_instructions(judged: Sequence[JudgedSample]) -> str:
    """The lowest grades of the instructions, with the judge's reasons."""
    graded = [
        (grade, sample.sample.instruction) for sample in judged for grade in sample.grades if grade.grade is not None
    ]
    if not graded:
        return "The judge graded none of the instructions."
    graded.sort(key=lambda pair: pair[0].grade or 0)
    lines = [
        f'- "{clipped(text)}": {grade.criterion} {grade.grade} of 5. {clipped(grade.reason, REASON_LENGTH)}'
        for grade, text in graded[:MOST_GRADES]
    ]
    return "\n".join(["A judge graded the new instructions; the lowest grades and its reasons:", *lines])


def feedback_on_responses(judged: Sequence[JudgedSample], graded: Sequence[Sequence[Graded]]) -> str:
    """How the final answers compare with the original prompts' answers, and what the judge criticises in them."""
    if not judged:
        return "There was no final answer to judge."
    return "\n\n".join(_feedback_on_answer(sample, grades) for sample, grades in zip(judged, graded, strict=True))


def _feedback_on_answer(judged: JudgedSample, grades: Sequence[Graded]) -> str:
    lines = [f'The final answer to "{clipped(judged.sample.instruction)}" {_outcome(judged.verdict)}']
    if judged.verdict is not None:
        lines += [
            f"- Judge (A is this answer, B the original prompts'): {clipped(reason, REASON_LENGTH)}"
            for reason in judged.verdict.reasons
        ]
    lines += [
        f"- {grade.criterion} {grade.grade or '?'} of 5. {clipped(grade.reason, REASON_LENGTH)}" for grade in grades
    ]
    if judged.length_ratio > 1.5:
        lines.append(
            f"- It is {judged.length_ratio:.1f} times as long as the original prompts' answer; length wins nothing."
        )
    return "\n".join(lines)


def _outcome(verdict: Verdict | None) -> str:
    if verdict is None:
        return "had nothing to be compared with."
    if verdict.preference is None:
        return f"could not be judged ({verdict.failed or verdict.abstained})."
    won = "lost to" if verdict.preference < 0 else "beat" if verdict.preference > 0 else "tied with"
    return f"{won} the answer that the original prompts give."


def clipped(text: str, longest: int = INSTRUCTION_LENGTH) -> str:
    """`text` in at most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
