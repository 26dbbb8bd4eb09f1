"""The shapes of a reference."""

from __future__ import annotations

import pytest

from refed_dspy.config.base import Turns
from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError
from tests.data.test_references import ROWS, Row, pairs, refusal
from tests.support.said import Said

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
        {"question": "Q", "answer": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "response": "A"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]},
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
        {"instruction": "Q", "context": "I", "response": "A"},
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
        ({"ask": "Q", "reply": "A"}, "unrecognised"),
        ({}, "unrecognised"),
        ({"instruction": 5, "response": "A"}, "unrecognised"),
        ({"instruction": "Q", "response": ["A"]}, "unrecognised"),
        ({"conversations": "Q A"}, "unrecognised"),
        ({"conversations": [5, "A"]}, "unrecognised"),
        ({"messages": [ASSISTANT, USER]}, "unrecognised"),
        ({"messages": [ASSISTANT, ASSISTANT]}, "unrecognised"),
        ({"conversations": [HUMAN, HUMAN]}, "unrecognised"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "image_url"}]}]}, "unrecognised"),
        ({"messages": [USER, {"role": "tool", "content": "42"}, ASSISTANT]}, "unrecognised"),
        ({"messages": [{"role": "system", "content": 5}, USER, ASSISTANT]}, "unrecognised"),
        ({"instruction": "Q", "response": "A", "system": "\ud800"}, "broken text"),
    ],
    ids=str,
)
def test_an_unusable_row_is_left_out_and_counted_by_reason(said: Said, row: Row, reason: str) -> None:
    assert load_references([ROWS[0], row]).left_out == {reason: 1}
    said(refusal([row]))


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
def test_a_system_prompt_is_kept(said: Said, row: Row) -> None:
    [reference] = load_references([row])
    assert (reference.system, reference.instruction, reference.response) == ("S", "Q", "A")
    said(reference.shown)
    assert reference.id != load_references([{"instruction": "Q", "response": "A"}])[0].id


CONVERSATION = ["Q1", "A1", "Q2", "A2", "Q3"]


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": CONVERSATION},
        {
            "messages": [
                {"role": "user" if n % 2 == 0 else "assistant", "content": t} for n, t in enumerate(CONVERSATION)
            ]
        },
    ],
    ids=["strings", "messages"],
)
def test_of_a_conversation_the_first_or_the_last_exchange_is_taken(said: Said, row: Row) -> None:
    assert pairs(load_references([row], turns="first")) == [("Q1", "A1")]
    [last] = load_references([row], turns="last")
    said((last.instruction, last.response, last.earlier))
    said(last.shown)
    assert load_references([ROWS[0], row]).left_out == {"multi-turn": 1}
    assert load_references([last])[0] == last, "a reference is read as it is"


@pytest.mark.parametrize(("turns", "system"), [("first", "S1"), ("last", "S1\n\nS2")])
def test_an_exchange_stands_under_the_system_prompts_before_its_answer(turns: Turns, system: str) -> None:
    roles = ["system", "user", "assistant", "system", "user", "assistant", "system"]
    said = [{"role": role, "content": f"{role[0].upper()}{number}"} for number, role in enumerate(roles)]
    texts = {0: "S1", 3: "S2", 6: "S3"}
    for number, text in texts.items():
        said[number]["content"] = text
    [reference] = load_references([{"messages": said}], turns=turns)
    assert reference.system == system


def test_turns_that_do_not_exist_are_refused(said: Said) -> None:
    with said.by(ConfigError):
        load_references([ROWS[0]], turns="middle")  # type: ignore[arg-type]


def test_reasons_are_counted_together_and_the_commonest_comes_first() -> None:
    rows: list[Row] = [{"conversations": ["Q"]}, {"conversations": ["Q", "A", "Q"]}, {"conversations": []}]
    hint = "; set turns to first or last to learn from one exchange of each"
    assert refusal(rows) == f"references: no usable row (2 empty, 1 multi-turn){hint}"


def test_duplicates_are_told_apart_from_others_by_both_texts() -> None:
    rows = [("Name a bird.", "Wren."), ("NAME  a\nbird.", "wren. "), ("Name a bird.", "Robin."), ("Name it.", "Wren.")]
    references = load_references([{"instruction": q, "response": a} for q, a in rows])
    assert pairs(references) == [rows[0], rows[2], rows[3]]
    assert references.left_out == {"duplicate": 1}
