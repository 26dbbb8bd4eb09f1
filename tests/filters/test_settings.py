"""Settings of filters that make no sense are refused before a filter is made, in one line that names the setting."""

from __future__ import annotations

import math
from typing import Any

import pytest

from refed_dspy.config.loading import check_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("length", {}, "needs min_words, max_words, min_characters or max_characters"),
        ("length", {"min_words": -1}, "min_words: .*greater than or equal to 1"),
        ("length", {"max_characters": -5}, "max_characters: .*greater than or equal to 1"),
        ("length", {"min_words": 9, "max_words": 8}, "the lower bound is above the upper one"),
        ("length", {"min_words": 9, "of": "both"}, "of: .*'instruction' or 'response'"),
        ("language", {"allowed": []}, "allowed: .*at least 1 item"),
        ("language", {"of": "all"}, "of: .*'instruction', 'response' or 'both'"),
        ("near_duplicates", {"threshold": 0}, "threshold: .*greater than 0"),
        ("near_duplicates", {"threshold": 1.1}, "threshold: .*less than or equal to 1"),
        ("near_duplicates", {"of": "x"}, "of: .*'instruction', 'response' or 'both'"),
        ("overlap", {"against": "b.txt", "n": 1}, "n: .*greater than or equal to 3"),
        ("overlap", {"against": "b.txt", "of": "response"}, "of: .*'instruction' or 'both'"),
        ("rouge", {"threshold": 0}, "threshold: .*greater than 0"),
        ("rouge", {"threshold": -0.1}, "threshold: .*greater than 0"),
        ("rouge", {"threshold": 1.01}, "threshold: .*less than or equal to 1"),
        ("rouge", {"threshold": math.nan}, "threshold: .*finite"),
        ("rouge", {"threshold": math.inf}, "threshold: .*finite"),
    ],
)
def test_settings_that_make_no_sense(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"filters 1: {name}.*{message}") as caught:
        check_config(RunConfig, {"filters": [{name: settings}]})
    assert "\n" not in str(caught.value)
