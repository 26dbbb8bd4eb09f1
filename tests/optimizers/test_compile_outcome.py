"""What a compile leaves in its folder, what it refuses, and what ends it."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import exceptions as lm_errors

from benchmarks.preference import model
from refed_dspy.errors import InputError, RunStopped
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.saved import MANIFEST, program_digests
from tests.support.said import Said
from tests.support.simulated_compiles import (
    ONE_CRITERION,
    OPTIONS,
    QUESTIONS,
    REFERENCES,
    SETS,
    Knows,
    Watched,
    answerer,
    compiled,
    ledger_of,
    marks,
    pair,
    refed,
)

# --- what a folder tells


def test_the_manifest_says_how_it_came_about(tmp_path: Path) -> None:
    world, program = Watched(), refed()
    made = compiled(tmp_path / "c", program, REFERENCES, world, seed=2, name="mine", metric=ONE_CRITERION)
    recorded = json.loads(made.path.read_text())[MANIFEST]
    assert {k: recorded[k] for k in made.manifest} == made.manifest
    assert json.loads(json.dumps(made.manifest, allow_nan=False)) == made.manifest
    versions = recorded["versions"]
    assert versions["dspy"] == version("dspy") and versions["refed-dspy"] and versions["python"]
    assert recorded["models"] == {
        role: {"model": "sim/world", "endpoint": "sim"} for role in ("teacher", "judge", "reflection")
    }
    assert recorded["prompts"] == program_digests(made.program) and recorded["kind"] == "ReferenceLevelFeedback"
    assert (recorded["seed"], recorded["name"], recorded["sets"], recorded["stopped"]) == (2, "mine", SETS, "")
    assert recorded["instructions_per_feature"] == 7 and recorded["features"] == program.features
    assert recorded["calls"] == world.requests == sum(stage["calls"] for stage in recorded["usage"].values())
    assert recorded["metric"]["wins"] == 0.6 and recorded["cost"] is None and recorded["proof"]["gain"]["clusters"] == 5
    assert (len(recorded["seen"]) == 4 and recorded["candidate"] == recorded["baseline"]) or made.changed


def test_the_outcome_is_told_in_a_few_lines(said: Said, tmp_path: Path) -> None:
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=lambda example, prediction: 0.5)
    lines = made.lines()
    assert lines[-1] == f"program: {made.path}" and all(line.isprintable() for line in lines)
    said(lines)
    said(made.diff())


@pytest.mark.slow
def test_a_file_that_cannot_be_written_leaves_no_half(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("refed_dspy.files.os.fsync", full)
        with said.by(RunStopped):
            compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"ledger.sqlite", ".lock", ".checked", "optimizer.log"}
    assert compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks).path.is_file()


# --- what is refused: before anything is written or paid for


def lacking(example: Any, prediction: Any) -> float:
    raise AssertionError("nobody is asked")


def bound() -> dspy.Module:
    program = answerer()
    program.set_lm(model(Watched()))
    return program


REFUSED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "no examples": (answerer, [], {}),
    "two examples": (answerer, QUESTIONS[:2], {}),
    "two references": (refed, REFERENCES[:2], {"metric": None}),
    "no references": (refed, [], {"metric": None}),
    "no metric": (answerer, QUESTIONS, {"metric": None}),
    "a metric's name": (answerer, QUESTIONS, {"metric": "accuracy"}),
    "weights for another": (answerer, QUESTIONS, {"metric": {"wins": 1}}),
    "a wrong weight": (refed, REFERENCES, {"metric": {"win": 1}}),
    "an LM of its own": (bound, QUESTIONS, {}),
    "no program": (dict, QUESTIONS, {}),
    "no predictor": (dspy.Module, QUESTIONS, {}),
    "no such file": (lambda: "none.json", REFERENCES, {"metric": None}),
    "a wrong setting": (answerer, QUESTIONS, {"evaluation": 3}),
    "too few": (answerer, QUESTIONS, {"evaluations": 0}),
    "a wrong teacher": (answerer, QUESTIONS, {"teacher": 7}),
    "pairs of one": (PairwiseJudge, [pair(1, "depth")], {"metric": None}),
    "no such class": (answerer, QUESTIONS, {"optimizer": "dspy.Nope"}),
    "a cap for an LM": (answerer, QUESTIONS, {"max_calls": 9}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line_before_anything_is_written(
    said: Said, case: str, tmp_path: Path
) -> None:
    (program, examples, more), world = REFUSED[case], Watched()
    with said.by(InputError) as raised:
        compiled(tmp_path / "c", program(), examples, world, **{"metric": lacking, **more})
    assert str(raised.value).isprintable()
    assert world.requests == 0 and not (tmp_path / "c").exists()


# --- what ends it


def test_a_metric_whose_scores_accept_nothing_is_told_of(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def low(example: Any, prediction: Any) -> float:
        return 0.4

    compiled(tmp_path / "c", answerer(), QUESTIONS, metric=low, optimizer="bootstrap")
    said(caplog.text)


@pytest.mark.parametrize(
    "optimizer", ["gepa", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bootstrap", "mipro", "simba"))]
)
def test_a_bug_in_a_metric_ends_it_and_is_named_with_its_item(optimizer: str, tmp_path: Path) -> None:
    """The bug shows on a training example alone, in the optimizer's hands."""
    calls = list[str]()
    compiled(tmp_path / "which", answerer(), QUESTIONS, metric=marks, optimizer=f"{__name__}.Knows")
    train = {example.question for example in Knows.sets[0]}

    def buggy(example: Any, prediction: Any) -> float:
        calls.append(example.question)
        if example.question in train:
            raise KeyError("tyop")
        return 0.5

    with pytest.raises(RunStopped, match="tyop") as stopped:
        compiled(tmp_path / "c", answerer(), QUESTIONS, metric=buggy, optimizer=optimizer, options=OPTIONS[optimizer])
    told = str(stopped.value)
    assert buggy.__qualname__ in told and any(question in told for question in train)
    assert not (tmp_path / "c" / "program.json").exists()
    assert len(calls) < 30, "no long way on after it"


class Buggy(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.say = dspy.Predict("question -> response")

    def forward(self, question: str) -> dspy.Prediction:
        made = self.say(question=question)
        if question.endswith("3"):
            raise LookupError("a bug of the program's")
        return made


def test_a_bug_in_a_program_ends_it_as_it_is(said: Said, tmp_path: Path) -> None:
    with said.by(LookupError):
        compiled(tmp_path / "c", Buggy(), QUESTIONS, metric=marks, optimizer="bootstrap")
    assert not (tmp_path / "c" / "program.json").exists()


@pytest.mark.parametrize(
    "failure", [lm_errors.LMServerError("down", model="m"), "no JSON"], ids=["endpoint", "malformed"]
)
def test_bad_luck_with_one_example_ends_nothing(failure: str | Exception, tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: failure if "question number 3" in text else None
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, optimizer="gepa")
    assert made.proof is not None and made.stopped == ""
    scored = {
        e: s for candidate in ledger_of(made.folder) for part in candidate.scores.values() for e, s in part.items()
    }
    programs_fault = isinstance(failure, str)
    assert len(scored) == (9 if programs_fault else 8), (
        "what does not fit is the program's doing, an endpoint's fault is not"
    )
    assert (0.0 in scored.values()) == programs_fault


@pytest.mark.parametrize(
    "odd",
    [
        "{x} {{y}} %s </context> [[ ## completed ## ]] ```",
        "\x00\x1b[31m\u2028",
        30_000 * "long ",
        "half a character \ud83d",
    ],
    ids=["braces", "control", "long", "half"],
)
def test_odd_prompts_from_the_model_that_rewrites_are_candidates_like_any(odd: str, tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: json.dumps({"new_instruction": odd}) if "new_instruction" in fields else None
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, optimizer="gepa", evaluations=4)
    assert made.proof is not None and json.loads(made.path.read_text(encoding="utf-8")) and made.diff()


def test_a_compile_with_an_object_among_its_options_goes_on(tmp_path: Path) -> None:
    for _ in range(2):
        options = {"gepa_kwargs": {"stop_callbacks": [lambda _state: False]}}
        compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, optimizer="gepa", options=options)


def test_the_caller_s_adapter_is_kept(tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: (
        None if fields else "[[ ## reasoning ## ]]\nr\n\n[[ ## response ## ]]\nsaid\n\n[[ ## completed ## ]]"
    )
    with dspy.context(adapter=dspy.ChatAdapter()):
        made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks)
    assert made.proof is not None and all("[[ ## question ## ]]" in text for _, text in world.asked)


@pytest.mark.parametrize(
    ("field", "answer"),
    [("new_instructions", "no JSON"), ("grade", json.dumps({"reason": "hm", "grade": "cannot tell"}))],
    ids=["nothing made", "nothing graded"],
)
def test_where_nothing_can_be_scored_it_says_why_before_anything_is_tuned(
    said: Said, tmp_path: Path, field: str, answer: str
) -> None:
    world = Watched()
    world.answer = lambda text, fields: answer if field in fields else None
    with pytest.raises(RunStopped) as raised:
        compiled(tmp_path / "c", refed(), REFERENCES, world, metric=ONE_CRITERION)
    said(re.sub(r"\b[0-9a-f]{12}\b", "EXAMPLE", str(raised.value)))
