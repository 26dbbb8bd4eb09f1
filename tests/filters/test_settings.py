"""Settings of filters that make no sense are refused before a filter is made, in one line that names the setting."""

from __future__ import annotations

import math
from typing import Any

import pytest

from refed_dspy.config.loading import check_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError
from refed_dspy.filters.language import Language
from tests.support.said import Said

NOT_FINITE = [math.nan, math.inf]
REFUSED: list[tuple[str, list[dict[str, Any]]]] = [
    ("length", [{}, {"min_words": -1}, {"max_characters": -5}, {"min_words": 9, "max_words": 8}]),
    ("length", [{"min_words": 9, "of": "both"}]),
    ("language", [{"allowed": []}, {"of": "all"}]),
    ("near_duplicates", [{"threshold": 0}, {"threshold": 1.1}, {"of": "x"}]),
    ("overlap", [{"against": "b.txt", "n": 1}, {"against": "b.txt", "of": "response"}]),
    ("rouge", [{"threshold": value} for value in (0, -0.1, 1.01, *NOT_FINITE)]),
    ("response_guard", [{"references": "x.jsonl"}]),
]


@pytest.mark.parametrize(("name", "settings"), [(name, each) for name, group in REFUSED for each in group])
def test_settings_that_make_no_sense(said: Said, name: str, settings: dict[str, Any]) -> None:
    with said.by(ConfigError) as refused:
        check_config(RunConfig, {"filters": [{name: settings}]})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("guards", [{"unchnged": "drop"}, {"unchanged": "maybe"}, "drop"])
def test_guards_that_make_no_sense(said: Said, guards: Any) -> None:
    with said.by(ConfigError) as refused:
        check_config(RunConfig, {"guards": guards})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("code", ["english", "DE"])
def test_languages_that_make_no_sense(said: Said, code: str) -> None:
    with said.by(ConfigError):
        Language(["en", code])
