"""Reasoning in an answer's text: what is cut off, and what is left alone."""

from __future__ import annotations

import json

import pytest

from refed_dspy.programs.reasoning import split_reasoning

ANSWER = '{"response": "Yes."}'


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        (f"<think>\nShort, then clear.\n</think>\n\n{ANSWER}", "Short, then clear."),
        (f"Qwen's template wrote the first tag.\n</think>{ANSWER}", "Qwen's template wrote the first tag."),
        (f"<think></think>\n{ANSWER}", ""),
        (f"<think>\nPoints: [1] short, {{2}} clear.</think>{ANSWER}", "Points: [1] short, {2} clear."),
        (f'<think>```json\n{{"response": "draft"}}\n```</think>{ANSWER}', '```json\n{"response": "draft"}\n```'),
        (f"<think>one</think> or rather <think>two</think>{ANSWER}", "one</think> or rather <think>two"),
        (ANSWER, ""),
    ],
)
def test_the_answer_is_what_comes_after_the_reasoning(text: str, reasoning: str) -> None:
    assert split_reasoning(text) == (reasoning, ANSWER)


@pytest.mark.parametrize("before", ["", "<think>So: yes.</think>"])
def test_an_answer_about_the_tag_stays_whole(before: str) -> None:
    answer = json.dumps({"response": "R1 ends its thoughts with </think> and then answers."})
    assert split_reasoning(before + answer)[1] == answer


def test_text_without_json_is_cut_at_the_last_tag() -> None:
    assert split_reasoning("<think>a</think>b</think>\nc") == ("a</think>b", "c")


@pytest.mark.parametrize(
    ("reasoning", "answer"),
    [
        ("Perhaps {1} or [2].", ANSWER),
        ('A draft: {"response": {"deep": 1}}. Better:\n```json', f"{ANSWER}\n```"),
    ],
)
def test_reasoning_that_was_never_closed_ends_before_the_last_object(reasoning: str, answer: str) -> None:
    assert split_reasoning(f"<think>{reasoning}\n{answer}") == (reasoning, answer)


@pytest.mark.parametrize(
    "text",
    [
        "<think>No JSON at all",
        '<think>{"cut": "of',
        "<think>" + "{" * 5_000,
        "<think>" + '{"a":' * 2_000,
        '<think>{"a": 1} so',
    ],
)
def test_reasoning_without_an_answer_is_left_as_it_is(text: str) -> None:
    assert split_reasoning(text) == ("", text)
