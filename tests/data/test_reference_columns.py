"""Columns of other names, and what is said of those that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError
from tests.data.test_references import pairs, refusal


def test_columns_map_other_names() -> None:
    row = {"question": "Q", "context": "I", "answer": "A", "instruction": "not this", "messages": []}
    named = {"instruction": "question", "response": "answer"}
    assert pairs(load_references([row], named)) == [("Q", "A")]
    assert pairs(load_references([row], {**named, "input": "context"})) == [("Q\n\nI", "A")]
    assert pairs(load_references([row], {"response": "answer"})) == [("not this", "A")]


def test_an_unknown_shape_is_refused_with_its_columns_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("ask,reply\nQ,A\n")
    message = refusal(path)
    assert "its columns are ask, reply" in message
    assert "columns: {instruction: …, response: …}" in message
    assert len(load_references(path, {"instruction": "ask", "response": "reply"})) == 1


@pytest.mark.parametrize(
    "columns",
    [{"instruction": "quest", "response": "answer"}, {"response": "answer"}, {"system": "rules"}],
    ids=str,
)
def test_columns_that_are_not_there_are_refused_with_those_that_are(columns: dict[str, str]) -> None:
    message = refusal([{"ask": "Q", "reply": "A"}], columns)
    assert "its columns are ask, reply" in message and f"no column {next(iter(columns.values()))}" in message


def test_a_column_of_no_role_is_refused() -> None:
    with pytest.raises(ConfigError, match="columns: 'question' is not one of instruction, response, input, system"):
        load_references([{"ask": "Q", "reply": "A"}], {"question": "ask"})


def test_a_system_prompt_may_stand_in_a_column_of_any_name() -> None:
    row, named = {"ask": "Q", "reply": "A", "rules": "Be brief."}, {"instruction": "ask", "response": "reply"}
    loaded = load_references([row], {**named, "system": "rules"})
    assert loaded[0].system == "Be brief."
    chat = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "rules": "Be brief."}
    assert load_references([chat], {"system": "rules"})[0].system == "Be brief."
    assert (
        load_references([row | {"system": float("nan")}], {"instruction": "ask", "response": "reply"})[0].system == ""
    )
    assert "1 unrecognised" in refusal([{"instruction": "Q", "response": "A", "system": ["Be brief."]}])


def test_a_column_with_a_line_break_in_its_name_is_told_in_one_line() -> None:
    refusal([{"ques\ntion": "Q"}])
