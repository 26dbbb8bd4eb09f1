"""What a training works on and with, checked before anything is written or paid for: pairs, what of them is held out
(instructions, and whole criteria and systems where there are enough), and the judge."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.pairs import Pair, load_pairs
from refed_dspy.errors import OUT, ConfigError, one_line
from refed_dspy.jobs.work import CapSettings, Work, caps_of
from refed_dspy.measures.intervals import MIN_CLUSTERS
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
from refed_dspy.plugins.judge.training.people import GradedAnswer, annotators, graded_answers
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.load import open_judge, refuse_bound_models
from refed_dspy.programs.saved import load_state, program_digests, program_state
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.judge import open_judge_model
from refed_dspy.text import counted

PAIRS, CRITERIA, SYSTEMS = "new pairs", "unseen criteria", "unseen systems"
SETS = (PAIRS, CRITERIA, SYSTEMS)
"""The names of the held-out sets."""
FEWEST_PAIRS, FEWEST_GRADED, FEWEST_TRAIN = 40, 40, 20
FEWEST_CRITERIA, FEWEST_SYSTEMS = 3, 4
"""With fewer of them, whole ones are held out only if they are named."""
FEWEST_INSTRUCTIONS = 2 * MIN_CLUSTERS
_LEFT = 0.5
"""Of the pairs, criteria and systems that are drawn leave at least this share, and FEWEST_PAIRS."""
_Named = Sequence[tuple[Pair, set[str]]]
"""Pairs, each with its criterion's or its systems' names."""


@dataclass(frozen=True)
class HeldOut:
    """What training does not see, by name."""

    instructions: frozenset[str]
    criteria: tuple[str, ...]
    systems: tuple[str, ...]

    def sets_of(self, instruction: str, criterion: str, systems: Collection[str]) -> tuple[str, ...]:
        """The held-out sets that a judgement belongs to; none: it is for training.

        `new pairs` are by criteria and of systems that training has seen. The other two sets may have instructions that
        training has seen with other criteria or systems.
        """
        unseen = {CRITERIA: criterion in self.criteria, SYSTEMS: not set(systems).isdisjoint(self.systems)}
        if any(unseen.values()):
            return tuple(name for name, is_in in unseen.items() if is_in)
        return (PAIRS,) if instruction in self.instructions else ()

    def of_pair(self, pair: Pair) -> tuple[str, ...]:
        return self.sets_of(pair.instruction, criterion_of(pair).name, (pair.system_a, pair.system_b))

    def of_answer(self, answer: GradedAnswer) -> tuple[str, ...]:
        return self.sets_of(answer.instruction, answer.criterion.name, [answer.system])

    def train(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those of `pairs` that are for training."""
        return [pair for pair in pairs if not self.of_pair(pair)]

    def train_answers(self, answers: Sequence[GradedAnswer]) -> list[GradedAnswer]:
        """Those of `answers` that are for training."""
        return [answer for answer in answers if not self.of_answer(answer)]

    def lines(self) -> list[str]:
        """What is held out, for people."""
        named = {"criteria": self.criteria, "systems": self.systems}
        whole = [f"{noun}: {one_line(', '.join(names), 300)}" for noun, names in named.items() if names]
        lacking = [f"no {noun}" for noun, names in named.items() if not names]
        held_out = [counted(len(self.instructions), "instruction"), *whole]
        return [f"held out: {'; '.join(held_out)}" + (f" ({', '.join(lacking)}: too few)" if lacking else "")]


def hold_out(pairs: Sequence[Pair], settings: JudgeTrainingConfig) -> HeldOut:
    """What to hold out of `pairs`, drawn with the seed.

    Raises ConfigError: too few pairs to hold anything out, or to be left; a named criterion or system that none has.
    """
    _check_enough(pairs)
    rng = random.Random(f"judge training {settings.seed}")
    share = settings.held_out
    by_criterion = [(pair, {criterion_of(pair).name}) for pair in pairs]
    criteria = _named(settings.held_out_criteria, by_criterion, "held_out_criteria: nobody judged by")
    criteria = criteria or _drawn(by_criterion, share, FEWEST_CRITERIA, rng)
    by_system = [(pair, {pair.system_a, pair.system_b} - {""}) for pair, names in by_criterion if names - {*criteria}]
    systems = _named(settings.held_out_systems, by_system, "held_out_systems: no answer is by")
    systems = systems or _drawn(by_system, share, FEWEST_SYSTEMS, rng)
    left = [pair for pair, names in by_system if names.isdisjoint(systems)]
    instructions = sorted({pair.instruction for pair in left})
    rng.shuffle(instructions)
    chosen = frozenset(instructions[: max(MIN_CLUSTERS, round(share * len(instructions)))])
    held_out = HeldOut(chosen, criteria, systems)
    if (train := len(held_out.train(left))) < FEWEST_TRAIN:
        raise ConfigError(
            f"pairs: only {train} are left to train on, of {FEWEST_TRAIN} that it takes; hold out less, or judge more "
            "pairs"
        )
    return held_out


def lacking(answers: Sequence[GradedAnswer]) -> str:
    """Why nothing can be learned from the grades of `answers`, which are for training; empty where something can."""
    if len(answers) < FEWEST_TRAIN:
        graded = counted(len(answers), "graded answer")
        return f"too few to learn from: {graded} to train on, of {FEWEST_TRAIN} that it takes"
    if len({grade for answer in answers for grade in answer.grades}) == 1:
        return "nothing to learn from: people gave all answers to train on the same grade"
    return ""


def _check_enough(pairs: Sequence[Pair]) -> None:
    instructions = len({pair.instruction for pair in pairs})
    if len(pairs) < FEWEST_PAIRS or instructions < FEWEST_INSTRUCTIONS:
        raise ConfigError(
            f"pairs: {counted(len(pairs), 'pair')} of {counted(instructions, 'instruction')} are too few to train a "
            f"judge and to hold any out; it takes {FEWEST_PAIRS} pairs of {FEWEST_INSTRUCTIONS} instructions, better "
            "several hundred"
        )


def _named(names: Sequence[str], of_pairs: _Named, fault: str) -> tuple[str, ...]:
    """`names` as pairs have them. Raises ConfigError for one that none has."""
    there = {known.replace("_", " "): known for _, of_pair in of_pairs for known in of_pair}
    for name in names:
        if name.replace("_", " ") not in there:
            listed = one_line(", ".join(sorted(there.values())), 200)
            raise ConfigError(f"{fault} {one_line(name, 40)!r}; there are: {listed or 'none, for none is named'}")
    return tuple(dict.fromkeys(there[name.replace("_", " ")] for name in names))


def _drawn(of_pairs: _Named, share: float, fewest: int, rng: random.Random) -> tuple[str, ...]:
    """About `share` of the names, at least one, that leave enough pairs; none of fewer than `fewest`."""
    names = sorted({name for _, of_pair in of_pairs for name in of_pair})
    if len(names) < fewest:
        return ()
    rng.shuffle(names)
    wanted, chosen = max(1, round(share * len(names))), set[str]()
    for name in names:
        left = sum(of_pair.isdisjoint({*chosen, name}) for _, of_pair in of_pairs)
        if len(chosen) < wanted and left >= max(_LEFT * len(of_pairs), FEWEST_PAIRS):
            chosen.add(name)
    return tuple(sorted(chosen))


# --- the whole


@dataclass(frozen=True)
class TrainingSpec:
    """One training: its pairs, what is held out of them, the judge and its prompts, and the settings."""

    pairs: Sequence[Pair]
    """Without those that the prompts were tuned on before."""
    left_out: int
    """How many those are."""
    held_out: HeldOut
    began_as: PairwiseJudge
    """The judge with the prompts that it began with."""
    teacher: Teacher
    settings: JudgeTrainingConfig

    @property
    def caps(self) -> CapSettings:
        return caps_of(self.settings)

    def answers(self, pairs: Sequence[Pair]) -> list[GradedAnswer]:
        """The graded answers of `pairs`; none where too little can be learned from them, or none are wanted."""
        graded = self._graded(pairs)
        return [] if self._lacking(graded) else graded

    def _graded(self, pairs: Sequence[Pair]) -> list[GradedAnswer]:
        return graded_answers(pairs) if self.settings.grades else []

    def _lacking(self, graded: Sequence[GradedAnswer]) -> str:
        """Why nothing can be learned from these grades; empty where something can."""
        if len(graded) < FEWEST_GRADED:
            return f"too few to learn from: {counted(len(graded), 'graded answer')}, of {FEWEST_GRADED} that it takes"
        return lacking(self.held_out.train_answers(graded))

    def identity(self) -> dict[str, Any]:
        """What may not change between starts. What is held out may, where no prompts were compiled on the rest."""
        settings = self.settings
        compiled = {
            "optimizer": settings.optimizer,
            "evaluations": settings.evaluations,
            "trained on": digest([pair.id for pair in self.held_out.train(self.pairs)]),
        }
        return {
            "pairs": digest([pair.id for pair in self.pairs]),
            "program": program_digests(self.began_as),
            "judge": self.teacher.identity,
            **(compiled if settings.optimizer is not None else {}),
        }

    def work(self) -> Work:
        """The training as paid work."""
        return Work(
            kind="training",
            identity=self.identity(),
            models={"judge": self.teacher},
            size=len(self.pairs),
            caps=self.caps,
            reuse=self.settings.reuse,
            policy=CallPolicy(self.settings.seed),
            way_out="choose another folder with " + OUT,
        )

    def notes(self, pairs: Sequence[Pair]) -> list[str]:
        """What is to be told of the data, for people. `pairs`: those that a correction is fitted to and measured on."""
        people = annotators(self.pairs)
        notes = {1: ["one annotator: how far people agree with each other is not known"]}.get(people, [])
        if self.left_out:
            notes = [*notes, f"left out: {counted(self.left_out, 'pair')} that the judge's prompts were tuned on"]
        if (graded := self._graded(pairs)) and (why := self._lacking(graded)):
            notes = [*notes, f"grades: {why}"]
        return notes

    def seen(self) -> list[str]:
        """Digests of the training pairs' instructions, and of those that the prompts were tuned on before."""
        train = {digest(pair.instruction) for pair in self.held_out.train(self.pairs)}
        return sorted({*train, *self.began_as.tuned_on})

    def facts(self) -> dict[str, Any]:
        """What the trained judge's file says of how it was made, in JSON types; no key and no address."""
        scorer = self.settings.scorer
        return {
            "models": {"teacher": {"model": self.teacher.model}},
            "seen": self.seen(),
            "pairs": len(self.held_out.train(self.pairs)),
            "held_out": {"criteria": list(self.held_out.criteria), "systems": list(self.held_out.systems)},
            "optimizer": self.settings.optimizer,
            "seed": self.settings.seed,
            "perplexity": scorer and {"model": scorer.model, "template": scorer.template},
        }


def prepare(
    pairs: str | Path | Sequence[Pair], judge: Any, program: Any, settings: JudgeTrainingConfig
) -> TrainingSpec:
    """Check what a training is called with. Nothing is written or paid for. Raises InputError."""
    began_as = _prompts_of(program, settings.accept_changed)
    loaded = load_pairs(pairs, settings.criteria) if isinstance(pairs, str | Path) else list(pairs)
    tuned_on = set(getattr(began_as, "tuned_on", ()))
    usable = [pair for pair in loaded if digest(pair.instruction) not in tuned_on]
    held_out = hold_out(usable, settings)
    if settings.optimizer is not None and len(held_out.train(usable)) < 2 * FEWEST_TRAIN:
        raise ConfigError(
            f"optimizer: {len(held_out.train(usable))} training pairs are too few to compile the prompts and fit a "
            f"correction; it takes {2 * FEWEST_TRAIN}"
        )
    return TrainingSpec(usable, len(loaded) - len(usable), held_out, began_as, open_judge_model(judge), settings)


def _prompts_of(program: Any, accept_changed: bool) -> PairwiseJudge:
    """A judge with the prompts of `program`, and without a correction that it may have."""
    if program is not None and not isinstance(program, PairwiseJudge | str | Path):
        raise ConfigError(f"program: got a {type(program).__name__}; pass a compiled judge, its file or MLflow address")
    given = program if isinstance(program, PairwiseJudge) else open_judge(program, accept_changed)
    refuse_bound_models(given)
    judge = PairwiseJudge()
    load_state(judge, program_state(given), "program")
    judge.tuned_on = list(getattr(given, "tuned_on", ()))
    return judge
