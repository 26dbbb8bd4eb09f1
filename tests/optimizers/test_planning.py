"""How many references a compile must hold out, by how gains varied in one before it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dspy.lm15 import Request, Response
from typer.testing import CliRunner

from benchmarks.preference import World
from refed_dspy.cli.main import app
from refed_dspy.errors import ConfigError, RunDirError
from refed_dspy.ledger.candidates import candidate_seen, evaluation_scored, examples_of, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.measures.intervals import clusters_for
from refed_dspy.optimizers.planning import plan_compile
from refed_dspy.programs import PairwiseJudge
from refed_dspy.records import Compared
from tests.support.said import Said
from tests.support.scripted_engine import response
from tests.support.simulated_compiles import PREFERENCE, compiled, pair

BETWEEN, WITHIN, SAMPLES, WEIGHT = 0.05, 0.2, 4, 0.5


def pilot(folder: Path, references: int, candidates: int = 1, seed: int = 0) -> Path:
    """A compile whose candidates gain 0.1, by samples whose wins vary."""
    rng = np.random.default_rng(seed)
    clusters = {
        "validation": {f"e{number}": f"c{number}" for number in range(references)},
        "test": {f"t{number}": f"of t{number}" for number in range(12)},
    }
    with Ledger.create(folder) as ledger:
        ledger.begin([], work="compile", about={"examples": "references", "clusters": clusters})
        ledger.commit(candidate_seen("first", 0, {}))
        for number in range(references):
            ledger.commit(evaluation_scored("first", f"e{number}", "validation", 0.5, {}, 0))
        for index in range(candidates):
            ledger.commit(candidate_seen(f"c{index}", index + 1, {}))
            for number in range(references):
                wins = 0.6 + rng.normal(0, BETWEEN / WEIGHT) + rng.normal(0, WITHIN, SAMPLES)
                score = 0.5 + WEIGHT * (float(wins.mean()) - 0.5)
                compared = Compared(WEIGHT, [(float(win), 0.0) for win in wins])
                ledger.commit(evaluation_scored(f"c{index}", f"e{number}", "validation", score, {}, 0, compared))
    return folder


def test_spread_and_noise_are_those_of_the_pilot(tmp_path: Path) -> None:
    plan = plan_compile(pilot(tmp_path, 200, candidates=3))
    noise = WEIGHT * WITHIN / SAMPLES**0.5
    assert plan.noise == pytest.approx(noise, rel=0.05)
    assert plan.spread == pytest.approx((BETWEEN**2 + noise**2) ** 0.5, rel=0.05)
    assert (plan.candidates, plan.references, plan.samples, plan.held_out) == (3, 200, 4, 12)
    assert plan.spread_with(1e9) == pytest.approx(BETWEEN, rel=0.1), "what more samples cannot take away"


def test_what_is_needed_is_what_the_rule_needs(tmp_path: Path) -> None:
    plan = plan_compile(pilot(tmp_path, 40), gains=[0.02, 0.1])
    assert plan.needed(0.1) == clusters_for(0.1, plan.spread)
    few, many = plan.needed(0.02, times=4), plan.needed(0.02)
    assert few is not None and many is not None and few < many
    assert plan.needed(0.0001) is None


def test_the_command(said: Said, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["compile", "plan", str(pilot(tmp_path, 12)), "--gain", "0.1", "--gain", "0.001"])
    assert told.exit_code == 0, told.output
    said(told.output)


def test_what_says_nothing_of_gains_is_refused(said: Said, tmp_path: Path) -> None:
    for references in (0, 4):
        with said.by(RunDirError):
            plan_compile(pilot(tmp_path / str(references), references))
    with Ledger.create(pilot(tmp_path / "old", 12)) as ledger:  # it did not note which examples belong together
        ledger.set_meta(examples=None, about={"examples": "instructions"})
    with Ledger.create(tmp_path / "run") as ledger:
        ledger.begin([], work="run")
    for folder in ("old", "run"):
        with said.by(RunDirError):
            plan_compile(tmp_path / folder)
    with said.by(ConfigError):
        plan_compile(tmp_path / "run", gains=[0.1, 0.0])


class Fair:
    """An optimizer in DSPy's shape with one thing to say."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def compile(self, student: Any, *, trainset: list[Any], valset: list[Any]) -> Any:
        program = student.deepcopy()
        predictor = program.predictors()[0]
        predictor.signature = predictor.signature.with_instructions(f"{predictor.signature.instructions}\nBe fair.")
        return program


class Guesses(World):
    """A judge that guesses, and less often when it is told to be fair."""

    def __init__(self) -> None:
        super().__init__(PREFERENCE)

    def complete(self, request: Request) -> Response:
        prompt = f"{request.system} {request.messages}"
        rng, right = random.Random(prompt), "B>A" if "<answer_a>\\nplain" in prompt else "A>B"
        guesses = rng.random() < (0.5 if "Be fair." in prompt else 1)
        return response(
            json.dumps({"reason": "so", "verdict": rng.choice(["A>B", "B>A", "A=B"]) if guesses else right})
        )


def test_a_judge_s_examples_are_counted_by_instruction_as_in_its_proof(said: Said, tmp_path: Path) -> None:
    """Each instruction is judged by three criteria: three examples that are no independent witnesses."""
    pairs = [pair(number, criterion) for number in range(12) for criterion in ("rigor", "depth", "tone")]
    sets = {"train": 2, "validation": 4, "test": 6, "optimizer": f"{__name__}.Fair"}
    made = compiled(tmp_path / "c", PairwiseJudge(), pairs, Guesses(), **sets)
    plan = plan_compile(tmp_path / "c")
    assert (plan.references, plan.held_out, plan.unit) == (10, 6, "instructions")
    by_instruction = [
        [score - before[example] for example, score in scores.items() if instruction == of[example]]
        for before, scores, of in _both(tmp_path / "c")
        for instruction in {*of.values()}
    ]
    assert plan.spread == pytest.approx(np.std([np.mean(each) for each in by_instruction], ddof=1))
    assert made.proof is not None
    said([plan.lines()[0], plan.lines()[-1], made.proof.lines()[3]])


def _both(folder: Path) -> list[tuple[Mapping[str, float], Mapping[str, float], Mapping[str, str]]]:
    """Of each set: the first program's scores, the second's, and which instruction an example is of."""
    with Ledger.read(folder) as ledger:
        (first, second), examples = load_candidates(ledger), examples_of(ledger)
    return [(first.scores[name], second.scores[name], of) for name, of in examples["clusters"].items()]
