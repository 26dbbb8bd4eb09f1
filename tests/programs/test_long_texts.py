"""Texts of a model of any length and kind: the work on them grows with their length alone, and reasoning is cut off.

How long it takes, and how long an event loop stands still, is measured by `benchmarks.nonsense`.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from benchmarks.nonsense import KINDS, nonsense
from refed_dspy.plugins.evaluate.answers.formats import _LISTS, _without_code
from refed_dspy.programs import reasoning
from refed_dspy.programs.adapter import MOST_REPAIRED, _AdapterFit
from refed_dspy.programs.reasoning import split_reasoning
from refed_dspy.signatures import InstructionSynthesis, ResponseGeneration
from refed_dspy.text import found
from tests.support.said import Said


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_looked_for_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def look(text: str) -> bool:
        looked.append(text)
        return False

    monkeypatch.setattr(reasoning, "_is_json_object", look)
    text = nonsense(kind, 2_000)
    for each in (text, f"<think>{text}", f"x{text}</think>", f"<think>{text}" + '{"a": "' + text + '"}', text + "}"):
        looked.clear()
        split_reasoning(each)
        assert len(looked) <= 1, "it is not read anew from every brace or tag"


REPAIRED = ["openings", "braces", "parentheses", "lists", "newlines", "random characters"]
STARTS = ["", '{"new_instructions": "', "[[ ## new_instructions ## ]]\n", "<new_instructions>"]


@pytest.mark.parametrize("adapter", [dspy.JSONAdapter(), dspy.ChatAdapter(), dspy.XMLAdapter()])
def test_dspy_repairs_no_long_text(said: Said, adapter: Any) -> None:
    reasons = set()
    for text in (start + nonsense(kind, 5 * MOST_REPAIRED) for start in STARTS for kind in REPAIRED):
        with pytest.raises(AdapterParseError) as refused:
            _AdapterFit(adapter, InstructionSynthesis).checked(text)
        reasons.add(str(refused.value).partition("\n\n")[0])
    said(sorted(reasons))


LONG = {"response": "Good. " * MOST_REPAIRED}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (json.dumps(LONG), LONG),
        (f"Here it is:\n```json\n{json.dumps(LONG)}\n```", LONG),
        ('{"response": "a comma too many",}', {"response": "a comma too many"}),
        ('{"response": "' + "x" * 5_000 + '",', {"response": "x" * 5_000}),
    ],
    ids=["long", "long in a fence", "broken", "cut"],
)
def test_what_dspys_adapters_read_they_still_read(text: str, values: dict[str, str]) -> None:
    outputs, left = _AdapterFit(dspy.JSONAdapter(), ResponseGeneration).checked(text)
    assert json.loads(outputs) == values
    assert dspy.JSONAdapter().parse(ResponseGeneration, left) == values, "the adapter reads it once more"
    if len(text) > 500:
        assert json.loads(left) == values, "and need not repair it"


OF_THE_BENCHMARK = {
    "ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE),
    "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE),
}


def test_styles_are_counted_as_the_benchmark_counts_them() -> None:
    pieces = [*"\n \t\rx`a.", "1.", "1. ", "- ", "* ", "+ ", "12", "```", "```a```", "```b```"]
    draw = random.Random(0)
    for _ in range(1_000):
        text = left = "".join(draw.choices(pieces, k=draw.randint(0, 14)))
        for name, pattern in OF_THE_BENCHMARK.items():
            assert len(_LISTS[name].findall(text)) == len(pattern.findall(text)), text
        for block in re.findall(r"```([^`]*)```", text):
            left = left.replace(block, "")
        assert _without_code(text) == left


def test_a_search_by_pieces_finds_the_same() -> None:
    pattern = re.compile(r"\bneedle(?:s)?\b")
    for at in (0, 49_990, 49_995, 50_000, 50_294, 99_999, 150_000):
        for needle in ("needle", "needles", "needlework needle"):
            text = f"{'x' * at} {needle} {'y' * 120_000} needle"
            assert (match := found(pattern, text)) is not None
            assert match.span() == pattern.search(text).span()  # type: ignore[union-attr]
    assert found(pattern, "x" * 200_000) is None


# --- reasoning: what is cut off, and what is left alone

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
