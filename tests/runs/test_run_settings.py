"""A run's settings as Python gives them: the keys of `RunConfig`, checked by it before anything is paid for."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy import ReferenceLevelFeedback
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError
from refed_dspy.programs.load import open_program
from refed_dspy.programs.reference_level import InstructionFeedbackOnly
from refed_dspy.programs.saved import save_program
from refed_dspy.runs.spec import prepare
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

GUIDANCE = "Be brief."
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
        method="instruction-only", features={"clear": "is clear"}, instructions_per_feature=3,
        guidance={"response_generation": GUIDANCE},
    ).program  # fmt: skip
    assert isinstance(program, InstructionFeedbackOnly)
    assert (program.features, program.instructions_per_feature) == ({"clear": "is clear"}, 3)
    assert program.response_generation.signature.instructions.endswith(GUIDANCE)


def test_a_saved_program_takes_what_the_settings_set(said: Said, tmp_path: Path) -> None:
    file, features = tmp_path / "program.json", {"clear": "is clear"}
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
