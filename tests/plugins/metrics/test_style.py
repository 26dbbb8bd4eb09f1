"""The style of an answer, as Arena-Hard's own code counts it. The counts below are what it gives for these texts."""

from __future__ import annotations

import os
from typing import Any

import pytest
import tiktoken

from refed_dspy.errors import ConfigError
from refed_dspy.plugins.evaluate.answers.formats import encoding, style_of
from tests.support.said import Said


def marks(text: str) -> list[tuple[str, int]]:
    """The marks that are counted at all."""
    counted = style_of(text)
    del counted["token_len"]
    return [(name, count) for group in counted.values() for name, count in group.items() if count]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("# A\n## B\n##\tC\n####### D\n#E\n ## F", [("h1", 1), ("h2", 2)]),
        ("#\n# A", [("h1", 2)]),
        ("1. a\n  12. b\n1.c\n- d\n* e\n\t+ f\n-g\n1) h", [("ordered", 2), ("unordered", 3)]),
        ("**a** **b\nc** __d__ *e* ****", [("**", 1), ("__", 1)]),
        ("# A\n```py\n# B\n- c\n```\n- d", [("h1", 1), ("unordered", 1)]),
        ("# A\n```\n# A\n```", [("h1", 1)]),
        ("# A\n# B\n```\n```", [("h1", 1)]),  # the fence holds a line feed, and all of them go
        ("# A\n```x```\n## x", [("h1", 1), ("h2", 1)]),
        ("- a\n``` `b` ```\n- c", [("unordered", 2)]),  # a fence with a backtick in it is none
    ],
)
def test_marks_are_counted_outside_code(text: str, expected: list[tuple[str, int]]) -> None:
    assert marks(text) == expected


def test_tokens_are_those_of_gpt_4o_also_in_code() -> None:
    shape: dict[str, Any] = style_of("**Hello**, world! <|endoftext|>\n```\nprint(1)\n```")
    assert list(shape) == ["token_len", "header_count", "list_count", "bold_count"]
    assert list(shape["header_count"]) == ["h1", "h2", "h3", "h4", "h5", "h6"]
    assert shape["token_len"] == 19 and style_of("")["token_len"] == 0
    assert encoding("o200k_base") is tiktoken.encoding_for_model("gpt-4o")


def test_the_folder_of_the_user_wins_and_the_environment_is_left_as_it_was(
    said: Said, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    encoding.cache_clear()
    assert encoding("o200k_base").name == "o200k_base" and "TIKTOKEN_CACHE_DIR" not in os.environ
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing is downloaded in a test
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with said.by(ConfigError):
        encoding("r50k_base")
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path)
