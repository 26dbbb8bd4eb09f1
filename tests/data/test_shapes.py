"""The shapes of a reference, and columns of other names."""

from __future__ import annotations

import pytest

from refed_dspy.config.base import Turns
from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError
from tests.data.test_references import ROWS, Row, pairs, refused
from tests.support.refusals import refusal
from tests.support.said import Said

USER, ASSISTANT = {"role": "user", "content": " Q "}, {"role": "assistant", "content": "A\n"}
HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
SYSTEM: Row = {"role": "system", "content": "S"}
ASK, NAMED = {"ask": "Q", "reply": "A"}, {"instruction": "ask", "response": "reply"}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Q", "response": "A"},
        {"instruction": " Q\n", "response": "\tA ", "id": 3},
        {"instruction": "Q", "output": "A"},
        {"instruction": "Q", "input": " ", "output": "A"},
        {"instruction": "Q", "input": None, "output": "A"},
        {"question": "Q", "answer": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "response": "A"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]},
        {"conversations": ["Q", "A"], "source": "stackexchange"},
        {"conversations": [HUMAN, GPT]},
        {"conversations": None, "messages": [USER, ASSISTANT]},
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
        {"instruction": "Q", "context": "I", "response": "A"},
        {"instruction": "Q", "instances": [{"input": "I", "output": "A"}]},
    ],
    ids=str,
)
def test_an_input_follows_its_instruction(row: Row) -> None:
    assert pairs(load_references([row])) == [("Q\n\nI", "A")]


LEFT_OUT: dict[str, list[Row]] = {
    "empty": [
        {"instruction": "", "response": "A"},
        {"instruction": "Q", "response": " \n"},
        {"instruction": "Q", "response": None},
        {"instruction": "Q", "instances": []},
        {"instruction": "Q", "instances": [{"input": "I"}]},
        {"conversations": []},
        {"conversations": ["Q"]},
        {"messages": [SYSTEM, USER]},
    ],
    "multi-turn": [
        {"conversations": ["Q", "A", "Q", "A"]},
        {"messages": [SYSTEM, USER, ASSISTANT, USER]},
        {"conversations": [HUMAN, GPT, HUMAN, GPT]},
    ],
    "broken text": [
        {"instruction": "\ud800", "response": "A"},
        {"instruction": "Q", "response": "A", "system": "\ud800"},
    ],
    "unrecognised": [
        ASK,
        {},
        {"instruction": 5, "response": "A"},
        {"instruction": "Q", "response": ["A"]},
        {"instruction": "Q", "response": "A", "system": ["S"]},
        {"conversations": "Q A"},
        {"conversations": [5, "A"]},
        {"messages": [ASSISTANT, USER]},
        {"messages": [ASSISTANT, ASSISTANT]},
        {"conversations": [HUMAN, HUMAN]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "image_url"}]}]},
        {"messages": [USER, {"role": "tool", "content": "42"}, ASSISTANT]},
        {"messages": [{"role": "system", "content": 5}, USER, ASSISTANT]},
    ],
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_an_unusable_row_is_left_out_and_counted_by_reason(said: Said, reason: str) -> None:
    rows = LEFT_OUT[reason]
    for row in rows:
        assert load_references([ROWS[0], row]).left_out == {reason: 1}, row
    said(refused(rows))


def test_the_commonest_reason_comes_first(said: Said) -> None:
    said(refused([{"conversations": ["Q"]}, {"conversations": ["Q", "A", "Q"]}, {"conversations": []}]))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER, ASSISTANT]},
        {"messages": [{"role": "developer", "content": " S "}, USER, ASSISTANT]},
        {"conversations": [{"from": "system", "value": "S"}, HUMAN, GPT]},
        {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
        {"instruction": "Q", "response": "A", "system": "S"},
        {"system_prompt": "S", "question": "Q", "response": "A"},
    ],
    ids=str,
)
def test_a_system_prompt_is_kept(row: Row) -> None:
    [reference] = load_references([row])
    assert (reference.system, reference.instruction, reference.response) == ("S", "Q", "A")
    assert reference.id != load_references([{"instruction": "Q", "response": "A"}])[0].id


CONVERSATION = ["Q1", "A1", "Q2", "A2", "Q3"]
MESSAGES = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(CONVERSATION)]


@pytest.mark.parametrize("row", [{"conversations": CONVERSATION}, {"messages": MESSAGES}], ids=["strings", "messages"])
def test_of_a_conversation_the_first_or_the_last_exchange_is_taken(said: Said, row: Row) -> None:
    assert pairs(load_references([row], turns="first")) == [("Q1", "A1")]
    [last] = load_references([row], turns="last")
    assert (last.instruction, last.response) == ("Q2", "A2")
    said(last.shown)
    assert load_references([last])[0] == last, "a reference is read as it is"


@pytest.mark.parametrize(("turns", "system"), [("first", "S1"), ("last", "S1\n\nS2")])
def test_an_exchange_stands_under_the_system_prompts_before_its_answer(turns: Turns, system: str) -> None:
    texts = {"S1": "system", "U1": "user", "A1": "assistant", "S2": "system", "U2": "user", "A2": "assistant"}
    messages = [{"role": role, "content": text} for text, role in [*texts.items(), ("S3", "system")]]
    [reference] = load_references([{"messages": messages}], turns=turns)
    assert reference.system == system


def test_duplicates_are_told_apart_from_others_by_both_texts() -> None:
    rows = [("Name a bird.", "Wren."), ("NAME  a\nbird.", "wren. "), ("Name a bird.", "Robin."), ("Name it.", "Wren.")]
    references = load_references(rows)
    assert pairs(references) == [rows[0], rows[2], rows[3]]
    assert references.left_out == {"duplicate": 1}


# --- columns of other names


def test_columns_map_other_names() -> None:
    row = {"question": "Q", "context": "I", "answer": "A", "instruction": "not it", "messages": []}
    named = {"instruction": "question", "response": "answer"}
    assert pairs(load_references([row], named)) == [("Q", "A")]
    assert pairs(load_references([row], {**named, "input": "context"})) == [("Q\n\nI", "A")]
    assert pairs(load_references([row], {"response": "answer"})) == [(row["instruction"], "A")]


def test_columns_that_are_not_there_are_refused_with_those_that_are(said: Said) -> None:
    wrong = [{"instruction": "quest", "response": "reply"}, {"response": "answer"}, {"system": "rules"}]
    said([refused([ASK], columns) for columns in wrong])
    said(refused([{"ques\ntion": "Q"}]))
    said(refusal(ConfigError, load_references, [ASK], {"question": "ask"}))
    said(refusal(ConfigError, load_references, [ASK], turns="middle"))


def test_a_system_prompt_may_stand_in_a_column_of_any_name() -> None:
    assert load_references([ASK | {"rules": "S"}], {**NAMED, "system": "rules"})[0].system == "S"
    assert load_references([{"messages": [USER, ASSISTANT], "rules": "S"}], {"system": "rules"})[0].system == "S"
    assert load_references([ASK | {"system": float("nan")}], NAMED)[0].system == ""
