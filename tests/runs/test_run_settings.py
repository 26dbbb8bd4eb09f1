"""A run's settings as Python gives them: the keys of `RunConfig`, checked before any payment; and its result."""

from __future__ import annotations

import html
import inspect
import math
import time
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy import ReferenceLevelFeedback, read_run, synthesize
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start
from refed_dspy.programs.load import open_program
from refed_dspy.programs.reference_level import InstructionFeedbackOnly
from refed_dspy.programs.saved import save_program
from refed_dspy.runs.result import full_status
from refed_dspy.runs.spec import prepare
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

GUIDANCE, FEATURES = "Be brief.", {"clear": "is clear"}
SETTINGS = set(RunConfig.model_fields) - {"references", "program"}
"""What `synthesize` takes by keyword: the other two are its first arguments."""


def prepared(program: Any = None, **settings: Any) -> Any:
    return prepare(program, references(2), **{"teacher": fake_lm(Writer()), "run_dir": "nowhere", **settings})


def test_help_tells_of_each_key_of_the_model() -> None:
    text = inspect.getdoc(refed_dspy.synthesize) or ""
    assert [name for name in sorted(SETTINGS) if f"\n    {name}: " not in text] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"siez": 3},
        {"size": 0},
        {"per_reference": 0},
        {"seed": "no"},
        {"size": True},
        {"max_minutes": "5"},
        {"columns": {"instructon": "q"}},
        {"filters": ["rogue"]},
        {"features": {}},
        {"max_calls": 1.5},
        {"method": "magic"},
    ],
)
def test_what_is_wrong_is_named_as_for_every_other_door(said: Said, settings: dict[str, Any]) -> None:
    with said.by(ConfigError):
        prepared(**settings)


def test_what_is_not_set_has_the_models_defaults() -> None:
    spec = prepared(size=None, seed=None, filters=None, max_cost=None)
    assert (spec.size, spec.config.seed, spec.config.max_failure_share, spec.folder) == (100, 0, 0.5, Path("nowhere"))
    assert set(spec.work().caps.values()) == {None}


def test_infinity_lifts_every_cap() -> None:
    caps = prepared(max_cost=math.inf, max_calls=math.inf, max_minutes=math.inf).work().caps
    assert set(caps.values()) == {math.inf}


def test_a_new_program_is_made_from_the_settings() -> None:
    program = prepared(
        method="instruction-only", features=FEATURES, instructions_per_feature=3,
        guidance={"response_generation": GUIDANCE},
    ).program  # fmt: skip
    assert isinstance(program, InstructionFeedbackOnly)
    assert (program.features, program.instructions_per_feature) == (FEATURES, 3)
    assert program.response_generation.signature.instructions.endswith(GUIDANCE)


def test_a_saved_program_takes_what_the_settings_set(said: Said, tmp_path: Path) -> None:
    file, features = tmp_path / "program.json", FEATURES
    save_program(ReferenceLevelFeedback(features), file)
    program = open_program(file, RunConfig(features=features, instructions_per_feature=7))
    assert (program.features, program.instructions_per_feature) == (features, 7)
    assert open_program(str(file), RunConfig(features=features)).instructions_per_feature == 10
    with said.by(ConfigError):
        open_program(file, RunConfig())
    with said.by(ConfigError):
        open_program(file, RunConfig(features=features, method="sample-level"))


@pytest.mark.parametrize("settings", [{"features": {"a": "b"}}, {"method": "sample-level"}, {"guidance": {"x": "y"}}])
def test_a_program_that_is_passed_is_not_changed_by_settings(said: Said, settings: dict[str, Any]) -> None:
    with said.by(ConfigError):
        prepared(ReferenceLevelFeedback(), **settings)


def test_a_compiled_judge_may_be_a_path(said: Said, tmp_path: Path) -> None:
    save_program(refed_dspy.programs.PairwiseJudge(), tmp_path / "judge.json")
    with said.by(ConfigError):
        prepared(judge_program=tmp_path / "judge.json")


# --- a run's status while a process works on it: the time that is left, from the moments at which samples came


def test_the_time_left_is_told_of_a_run_at_work_alone(said: Said, tmp_path: Path) -> None:
    made = synthesize(None, references(9), size=60, teacher=fake_lm(Writer()), run_dir=tmp_path, track=False)
    assert (made.state, made.reason, made.status["seconds_left"]) == ("done", "", None)
    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
        ledger.set_meta(size=160)
        assert full_status(ledger)["seconds_left"] is None, "what earlier starts made says nothing of the pace"
        now = time.time()
        ledger.commit([("UPDATE starts SET begun = ?", (now - 1_000,))])
        ledger.commit([("UPDATE samples SET created = ? - (60 - seq) * 2.0", (now,))])
        status = full_status(ledger)
    assert status["state"] == "running" and status["seconds_left"] == pytest.approx(200, rel=0.05)
    killed = read_run(tmp_path)
    assert killed.state == "killed"
    said(killed.reason)


def test_a_result_shows_its_run_as_it_is_now(said: Said, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"references": references(4), "run_dir": tmp_path, "track": False}
    first = synthesize(size=3, teacher=fake_lm(Writer()), **settings)
    said(repr(first))
    synthesize(size=6, teacher=fake_lm(Writer()), **settings)
    said(repr(first))
    assert (first.size, len(first), first.complete, first.status["size"]) == (6, 6, True, 3)
    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
        ledger.set_meta(size=9)
        said(repr(first))
        assert not first.complete
    said(repr(first))
    assert first.state == "killed"


def test_a_result_says_that_its_rows_are_simulated(said: Said, tmp_path: Path) -> None:
    made = synthesize(None, references(4), size=3, teacher="simulated", run_dir=tmp_path, track=False, progress=False)
    said(repr(made))
    assert html.escape(repr(made)) in made._repr_html_()
