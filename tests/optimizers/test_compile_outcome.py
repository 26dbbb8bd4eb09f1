"""What a compile leaves in its folder, what it refuses, and what ends it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils import exceptions as lm_errors

from benchmarks.preference import WISHES, model
from refed_dspy import TeacherConfig
from refed_dspy.errors import InputError, RunStopped
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.saved import MANIFEST, program_digests
from tests.support.said import Said
from tests.support.simulated_compiles import (
    ONE_CRITERION,
    OPTIONS,
    PREFERENCE,
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


def test_the_manifest_says_how_it_came_about(said: Said, tmp_path: Path) -> None:
    world = Watched()
    made = compiled(tmp_path / "c", refed(), REFERENCES, world, seed=2, name="mine", metric=ONE_CRITERION)
    recorded = json.loads(made.path.read_text())[MANIFEST]
    assert (
        {k: recorded[k] for k in made.manifest}
        == made.manifest
        == json.loads(json.dumps(made.manifest, allow_nan=False))
    )
    assert (
        recorded["versions"]["dspy"] == version("dspy")
        and recorded["versions"]["refed-dspy"]
        and recorded["versions"]["python"]
    )
    assert recorded["models"] == {
        role: {"model": "sim/world", "endpoint": "sim"} for role in ("teacher", "judge", "reflection")
    }
    assert recorded["prompts"] == program_digests(made.program) and recorded["kind"] == "ReferenceLevelFeedback"
    assert (recorded["seed"], recorded["name"], recorded["sets"], recorded["stopped"]) == (2, "mine", SETS, "")
    assert recorded["instructions_per_feature"] == 7
    said(recorded["features"])
    assert recorded["calls"] == world.requests == sum(stage["calls"] for stage in recorded["usage"].values())
    assert recorded["metric"]["wins"] == 0.6 and recorded["cost"] is None and recorded["proof"]["gain"]["clusters"] == 5
    assert (len(recorded["seen"]) == 4 and recorded["candidate"] == recorded["baseline"]) or made.changed


def test_no_key_is_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, address = "sk-live-0123456789", "http://127.0.0.1:9/v1"
    monkeypatch.setenv("KEY_OF_THE_JUDGE", key)
    judge = TeacherConfig(model="openai/judge", api_base=address, api_key_env="KEY_OF_THE_JUDGE")
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks, judge=judge)
    assert made.manifest["models"]["judge"] == {"model": "openai/judge", "endpoint": address}
    for path in made.folder.iterdir():
        assert key.encode() not in path.read_bytes(), path.name


def test_the_outcome_is_told_in_a_few_lines(said: Said, tmp_path: Path) -> None:
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=lambda example, prediction: 0.5)
    lines = made.lines()
    assert lines[-1] == f"program: {made.path}"
    said(lines[0])
    said(lines)
    assert (
        sum("is kept" in line for line in lines) == 1
        and not any("gain" in line for line in lines)
        and "cost: price unknown, 11 calls" in lines
    )
    assert all(line.isprintable() for line in lines)
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


def test_the_least_that_can_be_compiled_leaves_json(tmp_path: Path) -> None:
    made = compiled(tmp_path / "c", answerer(), QUESTIONS[:3], metric=marks, prove=False)
    json.loads(made.path.read_text(), parse_constant=pytest.fail)


# --- what is refused: before anything is written or paid for


def lacking(example: Any, prediction: Any) -> float:
    raise AssertionError("nobody is asked")


def bound() -> dspy.Module:
    program = answerer()
    program.set_lm(model(Watched()))
    return program


REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no examples": (answerer, [], {}, "references: this program needs a list of dspy.Example"),
    "two examples": (answerer, QUESTIONS[:2], {}, "examples: 2 of them.*a compile needs at least 3"),
    "two references": (refed, REFERENCES[:2], {"metric": None}, "examples: 2 of them.*a compile needs at least 3"),
    "no references": (refed, [], {"metric": None}, "references"),
    "no metric": (answerer, QUESTIONS, {"metric": None}, "metric: ChainOfThought needs one"),
    "a metric's name": (answerer, QUESTIONS, {"metric": "accuracy"}, "metric.function: is no function's name"),
    "weights for another": (answerer, QUESTIONS, {"metric": {"wins": 1}}, "metric: ChainOfThought needs one"),
    "a wrong weight": (refed, REFERENCES, {"metric": {"win": 1}}, "metric.win: unknown key; did you mean wins"),
    "an LM of its own": (
        bound,
        QUESTIONS,
        {},
        r"program: predict has an LM of its own; call set_lm\(None\) and pass the LM as teacher=",
    ),
    "no program": (dict, QUESTIONS, {}, "program: got a dict; pass a dspy.Module"),
    "no predictor": (dspy.Module, QUESTIONS, {}, "program: Module has no predictors to tune"),
    "no such file": (lambda: "none.json", REFERENCES, {"metric": None}, "program none.json: no such file"),
    "a wrong setting": (answerer, QUESTIONS, {"evaluation": 3}, "evaluation: unknown key; did you mean evaluations"),
    "too few": (answerer, QUESTIONS, {"evaluations": 0}, "evaluations: input should be greater"),
    "a wrong teacher": (answerer, QUESTIONS, {"teacher": 7}, "teacher: got a int; pass a TeacherConfig or"),
    "pairs of one": (PairwiseJudge, [pair(1, "depth")], {"metric": None}, "examples: 1 of them"),
}
# These need an optimizer, or caps, made ready.
REFUSED |= {
    "unknown optimizer": (answerer, QUESTIONS, {"optimizer": "gepaa"}, "not one of bootstrap, gepa, mipro, simba"),
    "wrong option": (answerer, QUESTIONS, {"options": {"demos": 3}}, "optimizer bootstrap: .*demos"),
    "no such class": (answerer, QUESTIONS, {"optimizer": "dspy.Nope"}, "optimizer dspy.Nope: cannot be imp"),
    "a cap for an LM": (answerer, QUESTIONS, {"max_calls": 9}, "a dspy.LM retries on its own"),
}


def refused(folder: Path, program: Any, examples: Any, more: dict[str, Any], message: str) -> None:
    world = Watched()
    with pytest.raises(InputError, match=message) as raised:
        compiled(folder, program(), examples, world, **{"metric": lacking, **more})
    assert str(raised.value).isprintable()
    assert world.requests == 0 and not folder.exists()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line_before_anything_is_written(case: str, tmp_path: Path) -> None:
    refused(tmp_path / "c", *REFUSED[case])


# --- what ends it


def test_a_program_that_makes_nothing_says_why(said: Said, tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: "no JSON" if "new_instructions" in fields else None
    with pytest.raises(RunStopped) as raised:
        compiled(tmp_path / "c", refed(), REFERENCES, world)
    said(str(raised.value))


def test_a_judge_that_grades_nothing_is_told_of_before_anything_is_tuned(tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: (
        json.dumps({"reason": "hm", "grade": "cannot tell"}) if "grade" in fields else None
    )
    with pytest.raises(RunStopped, match=r"scored nothing on every .* \(.*: no grades decided: 1 abstention, 0 fail"):
        compiled(tmp_path / "c", refed(), REFERENCES, world, metric=ONE_CRITERION)


def test_a_program_that_makes_everything_and_wins_nothing_can_be_tuned(tmp_path: Path) -> None:
    def strict(example: Any, prediction: Any) -> bool:
        return WISHES[PREFERENCE.answers[0]] in prediction.response

    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=strict, optimizer=f"{__name__}.Knows")
    assert made.changed


def test_a_metric_whose_scores_accept_nothing_is_told_of(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def low(example: Any, prediction: Any) -> float:
        return 0.4

    compiled(tmp_path / "c", answerer(), QUESTIONS, metric=low, optimizer="bootstrap")
    said(caplog.text)


@pytest.mark.parametrize("optimizer", ["bootstrap", "gepa", "mipro", "simba"])
def test_a_bug_in_a_metric_ends_it_and_is_named_with_its_item(optimizer: str, tmp_path: Path) -> None:
    """The bug shows on a training example alone, in the optimizer's hands."""
    calls = list[str]()
    made = compiled(tmp_path / "which", answerer(), QUESTIONS, metric=marks, optimizer=f"{__name__}.Knows")
    train = {example.question for example in Knows.sets[0]}

    def buggy(example: Any, prediction: Any) -> float:
        calls.append(example.question)
        if example.question in train:
            raise KeyError("tyop")
        return 0.5

    with pytest.raises(RunStopped, match=r"metric .*buggy on \{'question': .*KeyError: 'tyop' \(test_compile"):
        compiled(tmp_path / "c", answerer(), QUESTIONS, metric=buggy, optimizer=optimizer, options=OPTIONS[optimizer])
    assert not (tmp_path / "c" / "program.json").exists()
    assert made.path.exists() and len(calls) < 30, "no long way on after it"


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


def test_a_judge_that_abstains_on_a_reference_ends_nothing(tmp_path: Path) -> None:
    world = Watched()
    instruction = REFERENCES[3]["instruction"]

    def cannot(text: str, fields: Sequence[str]) -> str | None:
        if instruction in text and "grade" in fields:
            return json.dumps({"reason": "hard to say", "grade": "cannot tell"})
        return None

    world.answer = cannot
    made = compiled(tmp_path / "c", refed(), REFERENCES, world)
    assert made.proof is not None and made.stopped == ""


@pytest.mark.parametrize(
    "odd", ["{x} {{y}} %s </context> [[ ## completed ## ]] ```", "\x00\x1b[31m\u2028", 30_000 * "long "]
)
def test_odd_prompts_from_the_model_that_rewrites_are_candidates_like_any(odd: str, tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: json.dumps({"new_instruction": odd}) if "new_instruction" in fields else None
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, optimizer="gepa", evaluations=10)
    assert made.proof is not None and made.path.is_file() and made.diff()


def test_half_a_character_from_the_model_that_rewrites_ends_nothing(tmp_path: Path) -> None:
    world = Watched()
    world.answer = lambda text, fields: (
        '{"new_instruction": "Answer \\ud83d well."}' if "new_instruction" in fields else None
    )
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks, optimizer="gepa", evaluations=10)
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


def test_half_a_character_in_an_answer_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = Watched()
    half = json.dumps({"reasoning": "r", "response": "half \ud83d"}, ensure_ascii=False)
    world.answer = lambda text, fields: half if "number 3" in text else None
    with contextlib.suppress(RunStopped):
        compiled(tmp_path / "c", answerer(), QUESTIONS, world, metric=marks)
    assert "surrogates not allowed" not in caplog.text
