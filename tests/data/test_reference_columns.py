"""Columns of other names, and what is said of those that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError
from tests.data.test_references import pairs, refusal
from tests.support.said import Said


def test_columns_map_other_names(said: Said) -> None:
    row = {"question": "Q", "context": "I", "answer": "A", "instruction": "not this", "messages": []}
    named = {"instruction": "question", "response": "answer"}
    assert pairs(load_references([row], named)) == [("Q", "A")]
    assert pairs(load_references([row], {**named, "input": "context"})) == [("Q\n\nI", "A")]
    said(pairs(load_references([row], {"response": "answer"})))


def test_an_unknown_shape_is_refused_with_its_columns_and_the_remedy(said: Said, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("ask,reply\nQ,A\n")
    message = refusal(path)
    said(message)
    assert len(load_references(path, {"instruction": "ask", "response": "reply"})) == 1


@pytest.mark.parametrize(
    "columns",
    [{"instruction": "quest", "response": "answer"}, {"response": "answer"}, {"system": "rules"}],
    ids=str,
)
def test_columns_that_are_not_there_are_refused_with_those_that_are(said: Said, columns: dict[str, str]) -> None:
    message = refusal([{"ask": "Q", "reply": "A"}], columns)
    said(message)


def test_a_column_of_no_role_is_refused(said: Said) -> None:
    with said.by(ConfigError):
        load_references([{"ask": "Q", "reply": "A"}], {"question": "ask"})


def test_a_system_prompt_may_stand_in_a_column_of_any_name(said: Said) -> None:
    row, named = {"ask": "Q", "reply": "A", "rules": "Be brief."}, {"instruction": "ask", "response": "reply"}
    loaded = load_references([row], {**named, "system": "rules"})
    said(loaded[0].system)
    chat = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "rules": "Be brief."}
    said(load_references([chat], {"system": "rules"})[0].system)
    assert (
        load_references([row | {"system": float("nan")}], {"instruction": "ask", "response": "reply"})[0].system == ""
    )
    assert "1 unrecognised" in refusal([{"instruction": "Q", "response": "A", "system": ["Be brief."]}])


def test_a_column_with_a_line_break_in_its_name_is_told_in_one_line() -> None:
    refusal([{"ques\ntion": "Q"}])
