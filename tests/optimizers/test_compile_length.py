"""A compile that cannot be fooled by length: its judge counts words, and its optimizer asks for more of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.preference import WORDS, Preference, World, model
from refed_dspy import ReferenceLevelFeedback
from refed_dspy.measures.intervals import is_gain
from refed_dspy.optimizers.proof import Proof
from refed_dspy.optimizers.result import Compiled
from refed_dspy.teachers.progress import CompileProgress
from tests.support.said import Said
from tests.support.simulated_compiles import compiled

LONGER = "Write much longer, exhaustive answers."
PREFERENCE = Preference(0)


class Writes:
    """An optimizer in DSPy's shape that knows one thing to ask for."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def compile(self, student: Any, *, trainset: list[Any], valset: list[Any]) -> Any:
        program = student.deepcopy()
        for predictor in program.predictors():
            predictor.signature = predictor.signature.with_instructions(f"{predictor.signature.instructions}\n{LONGER}")
        return program


class Wordy(World):
    """A teacher that writes `times` as much when it is asked to, and a judge that counts words, or looks for a mark
    that the teacher makes when it is asked to write longer."""

    def __init__(self, times: float, judge: str = "counts words") -> None:
        super().__init__(PREFERENCE)
        self.times, self.judge = times, judge

    def _written(self, name: str, system: str, asked: str, rng: random.Random) -> Any:
        if name != "improved_response":
            return super()._written(name, system, asked, rng)
        longer = LONGER in system
        count = round(60 * rng.lognormvariate(0, 0.25) * (self.times if longer else 1))
        return " ".join([*(rng.choice(WORDS) for _ in range(count)), "Exhaustively." if longer else "So."])

    def _compared(self, asked: str) -> dict[str, str]:
        a, b = (asked.split(f"<answer_{side}>\n")[-1].split("\n</>")[0] for side in "ab")
        ahead = self._worth(a) - self._worth(b)
        return {"reason": "It says more.", "verdict": "A=B" if not ahead else "A>B" if ahead > 0 else "B>A"}

    def _worth(self, answer: str) -> int:
        return len(answer.split()) if self.judge == "counts words" else int("Exhaustively" in answer)


def written(folder: Path, world: Wordy, **settings: Any) -> tuple[Compiled, Proof]:
    made = compiled(
        folder,
        ReferenceLevelFeedback({"subject": "what it is about"}),
        PREFERENCE.references(24),
        **{
            "teacher": model(world), "judge": model(world, 0.0), "optimizer": f"{__name__}.Writes", "test": 16,
            "instructions_per_feature": 4, **settings,
        },
    )  # fmt: skip
    assert made.changed and made.proof is not None
    return made, made.proof


@pytest.mark.slow
@pytest.mark.parametrize("times", [1.5, 5.2])
def test_a_program_that_only_writes_longer_is_not_proved_without_a_word(
    said: Said, times: float, tmp_path: Path
) -> None:
    made, proof = written(tmp_path / "c", Wordy(times))
    assert is_gain(proof.gain.raw) and proof.rests_on_length and not proof.proved
    said((tmp_path / "c" / "proof.txt").read_text())
    said(proof.doubts())
    recorded = json.loads(made.path.read_text())["refed"]["proof"]
    assert (recorded["proved"], recorded["rests_on_length"]) == (False, True)
    again, accepted = written(tmp_path / "c", Wordy(times), accept_longer=True)
    assert accepted.proved and accepted.rests_on_length and again.manifest["calls"] == made.manifest["calls"]
    said(accepted.doubts())


@pytest.mark.slow
def test_a_program_that_writes_longer_and_better_is_proved(tmp_path: Path) -> None:
    made, proof = written(tmp_path / "c", Wordy(1.2, judge="looks for a mark"))
    assert proof.proved and not proof.rests_on_length and proof.gain.equal_length is not None
    assert proof.compiled.components["length_ratio"] > 1.1 and proof.gain.equal_length.mean == pytest.approx(
        0.3, abs=0.05
    )
    assert [line for line in made.lines() if "proved" in line] == ["proved better"]


class Undecided(Wordy):
    """A judge that cannot tell longer answers from others, in phases with these words."""

    def __init__(self, phase: str) -> None:
        super().__init__(5.2)
        self.phase, self.progress = phase, CompileProgress()

    def follow(self, progress: CompileProgress) -> None:
        self.progress = progress

    def _compared(self, asked: str) -> dict[str, str]:
        if "Exhaustively" in asked and self.phase in self.progress.phase:
            return {"reason": "They are long.", "verdict": "cannot tell"}
        return super()._compared(asked)


@pytest.mark.parametrize("weights", [{}, {"wins": 0.9, "grades": 0, "diversity": 0.1}], ids=str)
def test_a_program_that_the_judge_never_decides_on_is_not_kept(said: Said, weights: Any, tmp_path: Path) -> None:
    made = undecided(tmp_path / "c", Undecided(""), metric=weights)
    assert not made.changed and made.proof is not None and not made.proof.proved
    said(made.lines())


def test_a_test_set_that_the_judge_does_not_decide_on_is_named(said: Said, tmp_path: Path) -> None:
    made = undecided(tmp_path / "c", Undecided("test set"))
    assert made.changed and made.proof is None
    said(made.lines())


def undecided(folder: Path, world: Undecided, **settings: Any) -> Compiled:
    return compiled(
        folder,
        ReferenceLevelFeedback({"subject": "what it is about"}),
        PREFERENCE.references(9),
        **{
            "teacher": model(world), "judge": model(world, 0.0), "optimizer": f"{__name__}.Writes", "test": 5,
            "on_progress": world.follow, **settings,
        },
    )  # fmt: skip
