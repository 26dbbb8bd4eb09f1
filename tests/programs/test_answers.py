"""What the adapter takes for an answer: whole ones only."""

from __future__ import annotations

import json
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from refed_dspy.records import Analysis, ImplementationStrategy
from refed_dspy.signatures import ResponseGeneration, ResponseImprovement
from tests.programs.test_adapter import ADAPTER, GOOD
from tests.programs.test_rendering import WHOLE, Bounded, Note
from tests.support.said import Said
from tests.support.scripted_engine import SAMPLE_FIELDS


def refusal(signature: type[dspy.Signature], answer: Any) -> str:
    """Why this answer does not fit: the first paragraph of the error, one line."""
    with pytest.raises(AdapterParseError) as caught:
        ADAPTER.parse(signature, answer if isinstance(answer, str) else json.dumps(answer))
    reason = str(caught.value).partition("\n\n")[0]
    assert reason.isprintable()
    return reason


def test_an_answer_becomes_typed_values() -> None:
    values = ADAPTER.parse(ResponseImprovement, json.dumps(GOOD))
    assert list(values) == list(ResponseImprovement.output_fields)
    assert values["analysis"] == Analysis.model_validate(GOOD["analysis"])
    assert isinstance(values["implementation_strategy"], ImplementationStrategy)
    assert ADAPTER.parse(Bounded, json.dumps(WHOLE))["nested"] == [Note(word="e", words=["f"])]


@pytest.mark.parametrize(
    "answer",
    [
        '{"response": "A"}',
        ' \n{"response":\n"A"}\n',
        '```json\n{"response": "A"}\n```',
        '```\n{"response": "A"}\n```\n',
        'Here is my answer:\n{"response": "A"}\nI hope it helps.',
        '\ufeff{"response": "A"}',
        '{"thoughts": "hm", "response": "A"}',
    ],
    ids=ascii,
)
def test_one_whole_object_is_taken_out_of_the_words_or_fences_around_it(answer: str) -> None:
    assert ADAPTER.parse(ResponseGeneration, answer) == {"response": "A"}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A",
        "null",
        "{}",
        '"A"',
        "{",
        '{"response": "A"',
        '{"response": "A',
        '{"response": "a {b} c',
        '{"response": "a {b} c"',
        '```json\n{"response": "A',
        '{"response": "A",}',
        '{"response": "A" "more": 1}',
        "{'response': 'A'}",
        '{response: "A"}',
        '{"response": "two\nlines"}',
        '{"response": "A"} // {why}',
        'The {best} one: {"response": "A"}',
        '{"response": "A"}{"response": "B"}',
        '{"response": "A"}\n{"response": "B"}',
        '[{"response": "A"}, {"response": "B"}]',
        '{"answer": {"response": "A"}}',
        "[[ ## response ## ]]\nA\n\n[[ ## completed ## ]]",
        "<response>\nA\n</>",
        '{"response": "\\ud800"}',
        '{"response": "\\udc00 \\ud800"}',
        '{"response": "\ud800"}',
        '{"\ud800": 1, "response": "A"}',
        "[" * 5_000,
        '{"response": ' * 5_000,
        pytest.param('{"response": "A"}\n{"response": "B'),
        pytest.param('[{"response": "A"}, {"respo'),
    ],
    ids=lambda answer: ascii(answer)[:50],
)
def test_an_answer_that_is_not_one_whole_object_is_refused(answer: str) -> None:
    assert refusal(ResponseGeneration, answer)


@pytest.mark.parametrize("before", ["", "```json\n", "Here: "], ids=repr)
def test_an_answer_cut_anywhere_is_refused(before: str) -> None:
    whole = before + json.dumps({**GOOD, "improved_response": "{a} and {b}."})
    for end in range(len(whole)):
        assert refusal(ResponseImprovement, whole[:end])


def test_a_text_of_another_type_or_left_out_is_refused_by_name(said: Said) -> None:
    said([refusal(ResponseGeneration, {"response": value}) for value in (5, 1.5, True, None, ["A"], {"text": "A"}, [])])
    said([refusal(ResponseImprovement, {name: GOOD[name] for name in GOOD if name != place}) for place in GOOD])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("analysis", "good"),
        ("analysis", None),
        ("analysis", []),
        ("analysis.original_strengths", "good"),
        ("analysis.original_strengths", {"0": "good"}),
        ("analysis.original_strengths.0", 5),
        ("analysis.extra", ["x"]),
        ("implementation_strategy.rationale", None),
        ("improved_response", ["x"]),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_does_not_fit_is_refused_with_its_place(place: str, value: Any) -> None:
    answer = json.loads(json.dumps(GOOD))
    *outer, last = [int(step) if step.isdigit() else step for step in place.split(".")]
    holder = answer
    for step in outer:
        holder = holder[step]
    holder[last] = value
    assert refusal(ResponseImprovement, answer).startswith(f"{place}: ")


@pytest.mark.parametrize("text", ["🐦", "🐦" * 7])
def test_a_text_at_its_bound_is_taken(text: str) -> None:
    assert ADAPTER.parse(Bounded, json.dumps({**WHOLE, "by_type": text}))["by_type"] == text


@pytest.mark.parametrize(
    ("field", "value"),
    [("by_type", "🐦" * 8), *(("score", score) for score in (0, 6, 2.5, "three", None, "3", True))],
    ids=repr,
)
def test_what_is_out_of_its_bounds_or_of_another_type_is_refused_and_not_converted(field: str, value: Any) -> None:
    assert refusal(Bounded, {**WHOLE, field: value}).startswith(f"{field}: ")


def test_what_is_longer_than_the_decoders_bounds_is_taken_whole() -> None:
    notes = ["x" * 3_000] * 30
    analysis = {**SAMPLE_FIELDS["analysis"], "original_strengths": notes}
    answer = {**SAMPLE_FIELDS, "analysis": analysis, "improved_response": "y" * 30_000}
    parsed = ADAPTER.parse(ResponseImprovement, json.dumps(answer))
    assert parsed["analysis"].original_strengths == notes and parsed["improved_response"] == "y" * 30_000


def test_an_answer_that_copies_the_prompts_tags_is_refused(said: Said) -> None:
    copied = {**GOOD, "improved_response": "<reference_feedback>\nStrong in content.\n</>"}
    said(refusal(ResponseImprovement, copied))
    xml = {**GOOD, "improved_response": "Send <response>200</response>."}
    assert ADAPTER.parse(ResponseImprovement, json.dumps(xml))["improved_response"] == xml["improved_response"]
    thought = "<think>What does <reference_feedback> say? [1] {this}</think>\n"
    good = json.dumps(GOOD)
    assert ADAPTER.parse(ResponseImprovement, thought + good) == ADAPTER.parse(ResponseImprovement, good)
