"""What a training works on and with, checked before anything is written or paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.pairs import Pair, load_pairs
from refed_dspy.errors import ConfigError
from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
from refed_dspy.plugins.judge.training.held_out import FEWEST_GRADED, FEWEST_TRAIN, HeldOut, hold_out, lacking
from refed_dspy.plugins.judge.training.people import GradedAnswer, annotators, graded_answers
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.load import open_judge, refuse_bound_models
from refed_dspy.programs.saved import load_state, program_digests, program_state
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.judge import open_judge_model
from refed_dspy.teachers.work import CapSettings, Work, caps_of
from refed_dspy.text import counted


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
            way_out="choose another folder with out=…",
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
