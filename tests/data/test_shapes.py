"""The shapes of a reference."""

from __future__ import annotations

import pytest

from refed_dspy.data.references import load_references
from tests.data.test_references import ROWS, Row, pairs, refusal

USER, ASSISTANT = {"role": "user", "content": " Q "}, {"role": "assistant", "content": "A\n"}
HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
SYSTEM: Row = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Q", "response": "A"},
        {"instruction": " Q\n", "response": "\tA ", "id": 3},
        {"instruction": "Q", "output": "A"},
        {"instruction": "Q", "input": " ", "output": "A"},
        {"instruction": "Q", "input": None, "output": "A"},
        {"conversations": ["Q", "A"], "source": "stackexchange"},
        {"conversations": [HUMAN, GPT]},
        {"conversations": [{"from": "system", "value": "S"}, HUMAN, GPT]},
        {"conversations": None, "messages": [USER, ASSISTANT]},
        {"messages": [USER, ASSISTANT]},
        {"messages": [SYSTEM, USER, ASSISTANT]},
        {"messages": [{"role": "User", "content": "Q"}, {"role": "Assistant", "content": "A"}]},
        {"instruction": "Q", "instances": [{"input": "", "output": "A"}], "id": "seed_task_0"},
        {"instruction": "Q", "instances": [{"input": "", "output": "A"}, {"input": "x", "output": "other"}]},
    ],
    ids=str,
)
def test_a_known_shape_is_recognised(row: Row) -> None:
    assert pairs(load_references([row])) == [("Q", "A")]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Q ", "input": "\nI", "output": "A"},
        {"instruction": "Q", "input": "I", "response": "A"},
        {"instruction": "Q", "instances": [{"input": "I", "output": "A"}]},
    ],
    ids=str,
)
def test_an_input_follows_its_instruction(row: Row) -> None:
    assert pairs(load_references([row])) == [("Q\n\nI", "A")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "", "response": "A"}, "empty"),
        ({"instruction": "Q", "response": " \n"}, "empty"),
        ({"instruction": "Q", "response": None}, "empty"),
        ({"instruction": "Q", "instances": []}, "empty"),
        ({"instruction": "Q", "instances": [{"input": "I"}]}, "empty"),
        ({"conversations": []}, "empty"),
        ({"conversations": ["Q"]}, "empty"),
        ({"messages": [SYSTEM, USER]}, "empty"),
        ({"conversations": ["Q", "A", "Q", "A"]}, "multi-turn"),
        ({"messages": [SYSTEM, USER, ASSISTANT, USER]}, "multi-turn"),
        ({"conversations": [HUMAN, GPT, HUMAN, GPT]}, "multi-turn"),
        ({"instruction": "\ud800", "response": "A"}, "broken text"),
        ({"question": "Q", "answer": "A"}, "unrecognised"),
        ({}, "unrecognised"),
        ({"instruction": 5, "response": "A"}, "unrecognised"),
        ({"instruction": "Q", "response": ["A"]}, "unrecognised"),
        ({"conversations": "Q A"}, "unrecognised"),
        ({"conversations": [5, "A"]}, "unrecognised"),
        ({"messages": [ASSISTANT, USER]}, "unrecognised"),
        ({"messages": [ASSISTANT, ASSISTANT]}, "unrecognised"),
        ({"conversations": [HUMAN, HUMAN]}, "unrecognised"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]}, "unrecognised"),
    ],
    ids=str,
)
def test_an_unusable_row_is_left_out_and_counted_by_reason(row: Row, reason: str) -> None:
    assert load_references([ROWS[0], row]).left_out == {reason: 1}
    assert f"no usable row (1 {reason})" in refusal([row])


def test_reasons_are_counted_together_and_the_commonest_comes_first() -> None:
    rows: list[Row] = [{"conversations": ["Q"]}, {"conversations": ["Q", "A", "Q"]}, {"conversations": []}]
    assert refusal(rows) == "references: no usable row (2 empty, 1 multi-turn)"


def test_duplicates_are_told_apart_from_others_by_both_texts() -> None:
    rows = [("Name a bird.", "Wren."), ("NAME  a\nbird.", "wren. "), ("Name a bird.", "Robin."), ("Name it.", "Wren.")]
    references = load_references([{"instruction": q, "response": a} for q, a in rows])
    assert pairs(references) == [rows[0], rows[2], rows[3]]
    assert references.left_out == {"duplicate": 1}
