"""Is there anything to gain? A few programs that differ as much as prompts can, scored beside the noise of teacher and
judge: a compile whose optimizer searches nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from statistics import fmean, variance
from typing import Any, TypeAlias

import dspy

from refed_dspy.ledger.candidates import Candidate
from refed_dspy.measures.intervals import MIN_CLUSTERS
from refed_dspy.optimizers.beats_baseline import clipped
from refed_dspy.optimizers.examples import cluster_of, example_id
from refed_dspy.optimizers.metrics import is_recoverable
from refed_dspy.optimizers.prove import evaluator
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.text import table_lines

PLAIN = "From the inputs, make the outputs that are asked for."
FIXED = {
    "plain": "{plain}",
    "guidance": "{guidance}",
    "terse": "{plain} Be brief and to the point: as few words as will do, and nothing beyond what is asked.",
    "long": "{prompt}\n\nGo further than that. Be thorough and complete: cover every part and every point, with steps, "
    "concrete examples, evidence and particulars, in a clear structure of headings and lists.",
    "contrary": "{plain} Do not follow a pattern. Write plain, flowing prose as if you were talking to a friend, "
    "without headings or lists, steps, examples or details.",
}
"""Label → the prompts of a variant, made of the uncompiled program's `prompt`, of no prompt (`plain`) and of the
authors' `guidance`, where the program has a stage of that name."""
AGAIN, REWRITTEN = "the same again", "rewritten"
RUNS_AGAIN, REWRITINGS = 2, 2
PROGRAMS = len(FIXED) + RUNS_AGAIN + REWRITINGS
"""How many variants there are at most."""
EXAMPLES = 3
"""By how many examples all prompts are rewritten each time."""
ALPHA = 0.05
"""How often one of the variants seems to gain where none does, at most."""
LEAST = 0.01
"""Less is no sign of a gain worth a search."""
Prompts: TypeAlias = Mapping[str, str]
"""Predictor → its instructions."""
EXAMPLE_LENGTH = 1_200
"""How many characters of what a stage wrote are shown to the model that rewrites its prompt."""


class Rewriting(dspy.Signature):
    """Write a better prompt for one step of a program that calls a language model.

    You see the step's current prompt, and for some examples what the step wrote and what a judge said about it. Find
    out what the judge likes and dislikes, and say so in the new prompt as rules that hold for any input. Keep what the
    current prompt needs to do its task.
    """

    current_instruction: str = dspy.InputField(desc="the step's current prompt")
    examples_with_feedback: list[dict[str, str]] = dspy.InputField()
    new_instruction: str = dspy.OutputField(desc="the whole new prompt, and nothing else")


def prompts_of(program: dspy.Module) -> Prompts:
    return {name: predictor.signature.instructions for name, predictor in program.named_predictors()}


def fixed_variants(prompts: Prompts) -> dict[str, Prompts]:
    """Label → other prompts in place of these. Those of AGAIN differ by blanks at the end: they are other samples of
    the same program, whose true gain is none."""
    own = prompts_of(ReferenceLevelFeedback())
    made: dict[str, Prompts] = {
        f"{AGAIN} {number}": {name: text + " " * number for name, text in prompts.items()}
        for number in range(1, RUNS_AGAIN + 1)
    }
    for label, form in FIXED.items():
        guided = {name: {"prompt": text, "guidance": own.get(name, text)} for name, text in prompts.items()}
        made[label] = {name: form.format(plain=PLAIN, **texts) for name, texts in guided.items()}
    return {label: each for label, each in made.items() if each != prompts}


class Variants:
    """An optimizer in DSPy's shape that searches nothing: it scores fixed variants of a program on the validation set,
    and twice rewrites all of its prompts by what the metric says on other examples."""

    def __init__(self) -> None:
        self.metric: Any = None
        self.reflection_lm: dspy.LM | None = None
        self.num_threads = 1

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:
        """The program that scores highest. Raises ValueError for too small a `valset`."""
        if len({cluster_of(example) for example in valset}) < MIN_CLUSTERS:
            raise ValueError(f"{len(valset)} to score on is too few to tell anything; give more in all")
        score = evaluator(valset, self.metric, self.num_threads)
        scores = [(score(program).score, program) for program in chain([student], self._variants(student, trainset))]
        return max(scores, key=lambda each: each[0])[1]

    def _variants(self, student: dspy.Module, trainset: Sequence[dspy.Example]) -> Iterator[dspy.Module]:
        yield from (with_prompts(student, each) for each in fixed_variants(prompts_of(student)).values())
        program, examples = student, [*trainset] * REWRITINGS
        for start in range(0, REWRITINGS * EXAMPLES, EXAMPLES):
            program = self._rewritten(program, examples[start : start + EXAMPLES] or examples[:EXAMPLES])
            yield program

    def _rewritten(self, program: dspy.Module, examples: Sequence[dspy.Example]) -> dspy.Module:
        """`program` with the prompts that the reflection model makes of the metric's feedback on `examples`."""
        said: dict[tuple[str, str], dict[str, str]] = {}

        def listen(example: dspy.Example, watched: Any, _: Any = None) -> float:
            for name, predictor in program.named_predictors():
                steps = [step for step in watched.steps if step[0] is predictor][:1]
                if steps:
                    scored = self.metric(example, watched.made, None, name, steps)
                    wrote = clipped(str(dict(steps[0][2].items())), EXAMPLE_LENGTH)
                    said[name, example_id(example)] = {"output": wrote, "feedback": scored.feedback}
            return 0.0

        evaluator(examples, listen, self.num_threads)(_Watched(program))
        prompts = {}
        for name, prompt in prompts_of(program).items():
            shown = [said[name, each] for each in map(example_id, examples) if (name, each) in said]
            prompts[name] = self._reflected(prompt, shown) if shown else prompt
        return with_prompts(program, prompts)

    def _reflected(self, prompt: str, shown: list[dict[str, str]]) -> str:
        try:
            with dspy.context(lm=self.reflection_lm):
                made = dspy.Predict(Rewriting)(current_instruction=prompt, examples_with_feedback=shown)
        except Exception as error:
            if not is_recoverable(error):
                raise
            return prompt
        return made.new_instruction.strip() or prompt


class _Watched(dspy.Module):
    """A program whose prediction comes with the steps that made it."""

    def __init__(self, program: dspy.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, **inputs: Any) -> dspy.Prediction:
        with dspy.context(trace=[]):
            made = self.program(**inputs)
            return dspy.Prediction(made=made, steps=list(dspy.settings.trace))


def with_prompts(program: dspy.Module, prompts: Prompts) -> dspy.Module:
    """A copy of `program` with these."""
    program = program.deepcopy()
    for name, predictor in program.named_predictors():
        predictor.signature = predictor.signature.with_instructions(prompts[name])
    return program


# --- what they tell


@dataclass(frozen=True)
class Variant:
    """A variant, its mean gain over the uncompiled program, and what it gains at least, at 95% over all variants."""

    label: str
    gain: float
    at_least: float


@dataclass(frozen=True)
class Headroom:
    """What `variants` tell, the best first. `chance`: the standard deviation of a reference's score among runs of the
    same prompts; `best_of`: what the best of so many such runs gains, reference by reference, by chance."""

    variants: Sequence[Variant]
    chance: float
    best_of: tuple[int, float]

    @property
    def at_least(self) -> float:
        """What there is to gain at least, by the signs; 0 where there is none."""
        return max([0.0, *(each.at_least for each in self.variants if each.at_least >= LEAST)])

    @property
    def said(self) -> str:
        """The outcome in a line."""
        best, worst = self.variants[0], min(self.variants, key=lambda each: each.gain)
        if self.at_least:
            return f"signs of at least {self.at_least:.2f} to gain: {best.label} gains {best.gain:.2f}"
        none = f"{len(self.variants)} other programs, none surely better"
        if 2 * worst.gain - worst.at_least < 0:  # the other end, as far from the mean
            return f"no sign of a gain ({none}), though prompts matter here: {worst.label} loses {-worst.gain:.2f}"
        return f"no sign that prompts matter here: {none}"

    def lines(self) -> list[str]:
        """For a terminal."""
        return [
            self.said,
            *table_lines(
                [
                    ["program", "gain", "at least (95%)"],
                    *([each.label, f"{each.gain:+z.2f}", f"{each.at_least:+z.2f}"] for each in self.variants),
                ]
            ),
            f"by chance alone the better of {self.best_of[0]} runs of the same prompts gains {self.best_of[1]:+z.2f}",
            "what a search might find beyond these programs cannot be known",
        ]


def headroom_in(candidates: Sequence[Candidate], clusters: Mapping[str, str]) -> Headroom | None:
    """What the candidates of a compile by `Variants` tell; None where too few were scored.

    Where nothing is gained, a variant's gain varies from reference to reference as that of runs of the same prompts
    does: so its variance is pooled with theirs, unless it is larger itself, and then theirs adds the fewer degrees of
    freedom, the less it is (a teacher at temperature 0 hardly varies). A gain is at least its mean less Student's
    quantile at 1 - ALPHA / number of variants (Bonferroni)."""
    before, gains = candidates[0].scores.get("validation", {}), dict[str, dict[str, float]]()
    for candidate, label in zip(candidates[1:], labels_of(candidates), strict=True):
        scores = candidate.scores.get("validation", {})
        by_cluster: defaultdict[str, list[float]] = defaultdict(list)
        for example in before.keys() & scores.keys():
            by_cluster[clusters.get(example, example)].append(scores[example] - before[example])
        if len(by_cluster) >= MIN_CLUSTERS:
            gains[label] = {cluster: fmean(each) for cluster, each in by_cluster.items()}
    again = [gains.pop(label) for label in list(gains) if label.startswith(AGAIN)]
    if not again or not gains:
        return None
    chance = math.sqrt(fmean(variance(each.values()) for each in again))
    shared = set.intersection(*map(set, again))
    best = fmean(max(each[cluster] for each in again) for cluster in shared)
    tried = [_tried(label, [*each.values()], chance, len(gains)) for label, each in gains.items()]
    return Headroom(sorted(tried, key=lambda each: -each.at_least), chance, (len(again), best))


def _tried(label: str, gains: Sequence[float], chance: float, variants: int) -> Variant:
    from scipy.special import stdtrit

    own, number = variance(gains), len(gains)
    spread = math.sqrt(max(own, (own + RUNS_AGAIN * chance**2) / (1 + RUNS_AGAIN)))
    degrees = (number - 1) * (1 + RUNS_AGAIN * (min(1.0, chance**2 / own) if own else 1.0))
    quantile = float(stdtrit(degrees, 1 - ALPHA / variants))
    return Variant(label, fmean(gains), fmean(gains) - quantile * spread / math.sqrt(number))


def labels_of(candidates: Sequence[Candidate]) -> list[str]:
    """What each candidate but the first is called."""
    first, *others = map(_prompts_in, candidates)
    fixed, rewritten = fixed_variants(first), count(1)
    labels = ((label for label, each in fixed.items() if each == prompts) for prompts in others)
    return [next(each, "") or f"{REWRITTEN} {next(rewritten)}" for each in labels]


def _prompts_in(candidate: Candidate) -> Prompts:
    parts = ((name, part) for name, part in candidate.state.items() if isinstance(part, dict))
    return {name: part["signature"]["instructions"] for name, part in parts if "signature" in part}
