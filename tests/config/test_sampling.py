"""What a model's name tells about the sampling settings that it takes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from refed_dspy import TeacherConfig
from refed_dspy.config.loading import check_config
from refed_dspy.config.teacher import is_unsent, takes_zero
from refed_dspy.errors import ConfigError
from tests.support.refusals import refusal

ONLY_THE_DEFAULT = [
    "openai/gpt-5-mini",
    "openai/gpt-5.6-luna",
    "openai/o1",
    "openai/o4-mini-2025-04-16",
    "openrouter/openai/gpt-5",
    "anthropic/claude-opus-4-7",
    "anthropic/claude-opus-4-8-20260601",
    "anthropic/claude-opus-4-10",
    "anthropic/claude-sonnet-5",
    "anthropic/claude-fable-5",
    "openrouter/anthropic/claude-opus-4.7",
    "bedrock/us.anthropic.claude-opus-4-7-v1:0",
]
ONE_OF_TWO = [
    "anthropic/claude-opus-4-1-20250805",
    "anthropic/claude-sonnet-4-5",
    "anthropic/claude-sonnet-4-6",
    "anthropic/claude-haiku-4-5-20251001",
]
ANYTHING = [
    "openai/gpt-4o-mini",
    "openai/gpt-5-chat-latest",
    "openai/gpt-5.2-chat-latest",
    "anthropic/claude-3-5-sonnet-20241022",
    "anthropic/claude-opus-4-20250514",
    "openrouter/anthropic/claude-sonnet-4.5",
    "vllm/marco-o1",
    "azure/gpt-4o",
    "sim/sim-model",
]


def takes(**settings: Any) -> bool:
    return check_config(TeacherConfig, settings) is not None


refused = partial(refusal, ConfigError, TeacherConfig)


@pytest.mark.parametrize("model", ONLY_THE_DEFAULT)
def test_a_model_that_takes_only_its_default_takes_no_other(model: str) -> None:
    for temperature in (0, 0.5, 0.99):
        assert "temperature" in refused(model=model, temperature=temperature)
    assert takes(model=model) and takes(model=model, temperature=1)
    assert not takes_zero(model, {}) and is_unsent(1.0, model, {})


@pytest.mark.parametrize("model", ONE_OF_TWO)
def test_a_model_that_takes_one_of_two_is_sent_one(model: str) -> None:
    assert "top_p" in refused(model=model, temperature=0.7, params={"top_p": 0.9})
    assert takes(model=model, temperature=0.7) and takes(model=model, params={"top_p": 0.9})
    assert takes_zero(model, {}) and not takes_zero(model, {"top_p": 0.9})
    assert is_unsent(0.7, model, {"top_p": 0.9}) and not is_unsent(0.7, model, {})


@pytest.mark.parametrize("model", ANYTHING)
def test_any_other_model_is_sent_what_is_asked_for(model: str) -> None:
    assert takes(model=model, temperature=0.7, params={"top_p": 0.9})
    assert takes_zero(model, {"top_p": 0.9}) and not is_unsent(0.7, model, {"top_p": 0.9})


@pytest.mark.parametrize("model", ["anthropic/claude-3-5-sonnet-20241022", "anthropic/any", *ONE_OF_TWO])
def test_anthropics_temperature_ends_at_1_which_is_not_sent(model: str) -> None:
    assert is_unsent(1.0, model, {})
    assert "temperature" in refused(model=model, temperature=1.01)
    assert takes(model=model, temperature=1)


def test_a_deployments_name_is_a_guess_and_refuses_nothing() -> None:
    assert not takes_zero("azure/my-reasoner-gpt-5", {})
    assert takes(model="azure/my-reasoner-gpt-5", temperature=0.5)


def test_settings_that_a_folder_remembers_are_taken_again() -> None:
    first = TeacherConfig(model=ONE_OF_TWO[0], params={"top_p": 0.9})
    assert check_config(TeacherConfig, first.model_dump(mode="json")) == first
