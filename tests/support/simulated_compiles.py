"""Compiles in process, in the simulated world of benchmarks/preference.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request, Response

from benchmarks.optimization import silence
from benchmarks.preference import WISHES, Preference, World, model
from refed_dspy import compile as tune
from refed_dspy.data.pairs import Pair
from refed_dspy.ledger.candidates import Candidate, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.result import Compiled
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.load import load_program
from refed_dspy.programs.saved import program_digests
from refed_dspy.teachers.progress import CompileProgress
from tests.support.scripted_engine import response

PREFERENCE = Preference(0)
REFERENCES = PREFERENCE.references(9)
SETS = {"train": 2, "validation": 2, "test": 5}
QUESTIONS = [dspy.Example(question=f"question number {n}").with_inputs("question") for n in range(9)]


class Watched(World):
    """The world, and what it was asked in which phase. `answer` may answer instead of it."""

    def __init__(self) -> None:
        super().__init__(PREFERENCE)
        self.asked: list[tuple[str, str]] = []
        self.progress: CompileProgress | None = None
        self.answer: Callable[[str, list[str]], str | Exception | None] = lambda text, fields: None

    def complete(self, request: Request) -> Response:
        text = "\n".join(str(getattr(part, "text", "")) for m in request.messages for part in m.parts)
        fields = list(((request.config.response_format or {}).get("schema") or {}).get("properties", {}))
        self.asked.append((self.progress.phase if self.progress else "", f"{request.system}\n{text}\n{fields}"))
        answer = self.answer(text, fields)
        if isinstance(answer, Exception):
            raise answer
        return response(answer) if answer is not None else super().complete(request)

    def follow(self, progress: CompileProgress) -> None:
        self.progress = progress


def compiled(folder: Path, program: Any, examples: Any, world: World | None = None, **more: Any) -> Compiled:
    world = world or Watched()
    settings: dict[str, Any] = {
        "teacher": model(world),
        "judge": model(world, 0.0),
        "reflection": model(world),
        "out": folder,
        "optimizer": "bootstrap",
        "evaluations": 6,
        "threads": 2,
        "instructions_per_feature": 1,
        "track": False,
        **SETS,
        "on_progress": world.follow if isinstance(world, Watched) else None,
    }
    if isinstance(program, dspy.Module) and not isinstance(program, ReferenceLevelFeedback):
        del settings["instructions_per_feature"]
    with silence():
        return tune(program, examples, **{**settings, **more})


def refed(per_feature: int = 7) -> ReferenceLevelFeedback:
    return ReferenceLevelFeedback({"subject": "what it is about"}, per_feature)


ONE_CRITERION = {"criteria": {"clear": "one reading only"}}


def answerer() -> dspy.Module:
    return dspy.ChainOfThought("question -> response")


def marks(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    return 0.2 + 0.2 * sum(WISHES[wish] in prediction.response for wish in PREFERENCE.answers)


def ledger_of(folder: Path) -> list[Candidate]:
    with Ledger.create(folder) as ledger:
        return load_candidates(ledger)


def check_folder(made: Compiled, optimizer: str) -> None:
    state = json.loads(made.path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert all(
        part.get("lm") is None and not part["traces"] for name, part in state.items() if name in made.program.__dict__
    )
    assert {path.name for path in made.folder.iterdir()} - {"pairs.jsonl"} == {
        *("program.json", "prompts.diff", "proof.txt", "optimizer.log", "ledger.sqlite", ".lock", ".checked")
    }
    assert made.proof is not None and (made.folder / "proof.txt").read_text().splitlines() == made.proof.lines()
    again = load_program(made.path)
    assert program_digests(again) == program_digests(made.program) and again.instructions_per_feature == 7
    candidates = ledger_of(made.folder)
    assert [candidate.seq for candidate in candidates] == list(range(len(candidates))) and candidates[
        0
    ].digest == made.manifest["baseline"]
    assert set(candidates[0].scores) >= {"validation", "test"} and made.manifest["optimizer"] == optimizer
    assert (len(candidates[0].scores["validation"]), len(candidates[0].scores["test"])) == (2, 5)


def of_two(example: Any, prediction: Any) -> float:
    return marks(example, prediction)


def of_five(gold: Any, pred: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None) -> Any:
    return dspy.Prediction(score=marks(gold, pred), feedback=f"It does not {PREFERENCE.answers[0]}. <{pred_name}>")


class Knows:
    """An optimizer in DSPy's shape that knows the secret, and keeps its sets."""

    sets: tuple[list[Any], list[Any]] = ([], [])

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:
        type(self).sets = (trainset, valset)
        program = student.deepcopy()
        predictor = program.predictors()[0]
        wishes = "".join(f"\nAlways {wish}." for wish in PREFERENCE.answers)
        predictor.signature = predictor.signature.with_instructions(predictor.signature.instructions + wishes)
        program._compiled = True
        return program


def pair(number: int, criterion: str) -> Pair:
    good = PREFERENCE.references(1)[0]["response"]
    return Pair(
        instruction=f"Task {number}.",
        answer_a=good if number % 2 else "plain",
        answer_b="plain" if number % 2 else good,
        verdict=1.0 if number % 2 else -1.0,
        criterion=criterion,
        description=f"what {criterion} means",
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "bootstrap": {},
    "gepa": {},
    "mipro": {"num_candidates": 2, "num_trials": 1},
    "simba": {"bsize": 2, "num_candidates": 1, "max_steps": 1},
    "dspy.COPRO": {"breadth": 2, "depth": 1},
}
