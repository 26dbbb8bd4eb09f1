"""The keywords of public functions, as editors and notebooks see them, are the keys of the settings classes."""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import refed_dspy
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.run import RunConfig
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.plugins.evaluate.settings import AnswersConfig
from refed_dspy.plugins.metrics.settings import StatsConfig
from refed_dspy.plugins.recycle.settings import RecycleConfig
from refed_dspy.runs.estimate import aestimate

COST = "float | None"
TAKEN_ALREADY = {"references", "pairs"}
"""Settings that a function takes as an object, under another name or the same."""


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        *((run, RunConfig) for run in (refed_dspy.synthesize, refed_dspy.asynthesize, refed_dspy.stream)),
        *((run, RunConfig) for run in (refed_dspy.estimate, aestimate)),
        (refed_dspy.compare, CompareConfig),
        (refed_dspy.filter_data, FilterRunConfig),
        (refed_dspy.recycle, RecycleConfig),
        (refed_dspy.measure, StatsConfig),
        (refed_dspy.compile, CompileConfig),
        (refed_dspy.answer_prompts, AnswersConfig),
    ],
)
def test_a_signature_has_every_setting_of_its_class(function: Any, kind: Any) -> None:
    shown = inspect.signature(function).parameters
    assert set(kind.model_fields) - TAKEN_ALREADY - set(shown) == set()
    assert not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in shown.values())
    assert shown["max_cost"].default is None and shown["max_cost"].annotation == COST


def test_type_checkers_and_editors_know_what_the_classes_say() -> None:
    sys.path.append(str(Path(__file__).parents[2] / "docs" / "site"))
    stubs = import_module("stubs")
    assert stubs.FILE.read_text(encoding="utf-8") == stubs.stub(), "run docs/site/hooks.py"


def test_hints_can_be_had_where_the_stubs_are_not() -> None:
    for function in (refed_dspy.synthesize, refed_dspy.resume, refed_dspy.compile):
        assert "settings" not in get_type_hints(function)


def test_a_signature_has_the_defaults_of_the_class() -> None:
    run = inspect.signature(refed_dspy.synthesize).parameters
    assert (run["size"].default, run["seed"].default, run["filters"].default) == (100, 0, [])
    assert inspect.signature(refed_dspy.compile).parameters["optimizer"].default == "gepa"
