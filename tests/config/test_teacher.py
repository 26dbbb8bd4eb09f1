"""A teacher's settings: those that make no sense, and keys and passwords, which are refused and not repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ConfigError
from tests.config.test_loading import KEY, MODEL, refusal
from tests.support.said import Said


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({}, "model"),
        ({"model": MODEL, "gguf": "own.gguf"}, "needs either"),
        ({"model": "gpt-4o-mini"}, "PROVIDER/NAME"),
        ({"model": ""}, "PROVIDER/NAME"),
        ({"model": "embedded", "api_base": "http://127.0.0.1/v1"}, "api_base"),
        ({"gguf": "own.gguf", "api_key_env": "OPENAI_API_KEY"}, "api_key_env"),
        ({"model": MODEL, "temperature": 2.1}, "temperature"),
        ({"model": MODEL, "max_tokens": 15}, "max_tokens"),
        ({"model": MODEL, "concurrency": 0}, "concurrency"),
        ({"model": MODEL, "timeout": float("nan")}, "timeout"),
        ({"model": MODEL, "retries": 21}, "retries"),
        ({"model": MODEL, "context_window": 511}, "context_window"),
        ({"model": MODEL, "api_base": "127.0.0.1:8000/v1"}, "api_base"),
        ({"model": MODEL, "api_base": "https://[::1"}, "api_base"),
        ({"model": MODEL, "params": {"max_tokens": 5}}, "max_tokens"),
        ({"model": MODEL, "params": {"response_format": {}}}, "response_format cannot be set in params: the program"),
        ({"model": MODEL, "params": {"max_completion_tokens": 9}}, "it has its own setting, max_tokens"),
    ],
    ids=str,
)
def test_a_teacher_that_makes_no_sense_is_refused(settings: dict[str, Any], hint: str) -> None:
    message = refusal(teacher=settings)
    assert message.startswith("teacher: ")
    assert hint in message


def test_a_slash_at_the_end_of_an_address_is_dropped() -> None:
    assert TeacherConfig(model=MODEL, api_base="http://127.0.0.1:8000/v1/").api_base == "http://127.0.0.1:8000/v1"


# --- keys and passwords


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key_env": KEY},
        {"api_key_env": f"${{{KEY}}}"},
        {"api_key": KEY},
        {"token": KEY},
        {"api_base": f"https://user:{KEY}@example.org/v1"},
        {"api_base": f"https://{KEY}@example.org/v1"},
        {"api_base": f"https://:{KEY}@example.org/v1"},
        {"api_base": f"https://example.org/v1?key={KEY}"},
        {"api_base": KEY},
        {"temperature": KEY},
        {"retries": [KEY]},
        {"params": KEY},
        {"params": {"api_key": KEY}},
        {"params": {"apikey": KEY}},
        {"params": {"Authorization": f"Bearer {KEY}"}},
        {"params": {"extra_headers": {"X-Key": KEY}}},
        {"params": {"password": KEY}},
        {"params": {"client_secret": KEY}},
        {"gguf": KEY},
        pytest.param({"model": KEY}),
        pytest.param(
            {"params": {"extra_body": {"api_key": KEY}}},
        ),
        pytest.param(
            {"api_base": f"https://example.org/v1#{KEY}"},
        ),
    ],
    ids=lambda settings: str(settings).replace(KEY, "KEY"),
)
def test_a_key_in_the_teachers_settings_is_refused_and_not_repeated(tmp_path: Path, settings: dict[str, Any]) -> None:
    teacher, file = {"model": MODEL, **settings}, tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"teacher": teacher}))
    assert KEY not in refusal(file)
    assert KEY not in refusal(teacher=teacher)


def test_a_key_given_as_the_teacher_is_not_repeated() -> None:
    assert KEY not in refusal(teacher=KEY)


@pytest.mark.parametrize("key", ["sk_live_4f9a0c55e1d27b", "SK_4f9a0c55e1d27b"])
def test_a_key_that_would_do_as_a_variables_name_is_refused(key: str) -> None:
    assert key not in refusal(teacher={"model": MODEL, "api_key_env": key})


@pytest.mark.parametrize("key", ["gsk_4f9a0c55e1d27bA", "hf_4f9a0c55e1d27bA", "AIzaSy4f9a0c55e1d27b"])
def test_another_providers_key_is_refused_as_a_variables_name(key: str) -> None:
    assert key not in refusal(teacher={"model": MODEL, "api_key_env": key})


@pytest.mark.parametrize("settings", [{"api_key_env": KEY}, {"api_key": KEY}], ids=["api_key_env", "api_key"])
def test_a_key_given_to_the_class_itself_is_not_repeated(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^api_key") as caught:
        TeacherConfig(model=MODEL, **settings)
    assert KEY not in str(caught.value)


def test_a_misspelt_keyword_of_the_class_itself_is_one_line(said: Said) -> None:
    with said.by(ConfigError):
        TeacherConfig(model=MODEL, temprature=1)  # type: ignore[call-arg]
    with said.by(ConfigError):
        TeacherConfig(model="alone")
    nested = {"prompt": -1, "completion": 1}
    with said.by(ConfigError):
        TeacherConfig(model=MODEL, price=nested)  # type: ignore[arg-type]
