"""Inputs to messages, answer to values: only whole answers are taken, nothing is repaired, no text changed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from enum import Enum, auto
from typing import Any

import dspy
import pytest
from dspy.teleprompt.bootstrap_finetune import build_call_data_from_trace
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from refed_dspy.programs.adapter import SchemaAdapter, rendering
from refed_dspy.records import Analysis, ImplementationStrategy
from refed_dspy.signatures import (
    InstructionSynthesis,
    ResponseGeneration,
    ResponseImprovement,
)
from tests.programs.test_rendering import WHOLE, Bounded, Note, schema
from tests.support.said import Said
from tests.support.scripted_engine import SAMPLE_FIELDS, Writer, fake_lm

ADAPTER = SchemaAdapter()


def acalled(predictor: dspy.Predict) -> dspy.Prediction:
    return asyncio.run(predictor.acall(instruction="I"))


GOOD = {**SAMPLE_FIELDS, "improved_response": "Better."}


@pytest.mark.parametrize(
    ("params", "takes_schema", "sent"),
    [
        ({"response_format"}, True, "json_schema"),
        ({"response_format"}, False, "json_object"),
        (set(), True, None),
        (set(), False, None),
    ],
)
def test_a_teacher_gets_the_kind_of_schema_that_it_takes(
    params: set[str], takes_schema: bool, sent: str | None
) -> None:
    writer = Writer('{"response": "A"}', '{"response": "A"}')
    vars(writer).update(supported_params=frozenset(params), supports_response_schema=takes_schema)
    predictor = dspy.Predict(ResponseGeneration)
    with dspy.context(lm=fake_lm(writer), adapter=ADAPTER):
        assert predictor(example_instruction="E", example_response="R", instruction="I").response == "A"
    (request,) = writer.requests
    format_ = request.config.response_format
    assert (format_ or {}).get("type") == sent
    if format_ and sent == "json_schema":
        assert format_["schema"] == schema(ResponseGeneration)
        assert format_["strict"] is True


class Counting(BaseCallback):  # type: ignore[misc]
    """Counts what begins."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.begun["format"] += 1

    def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.begun["parse"] += 1

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.begun["lm"] += 1


@pytest.mark.parametrize("call", [lambda asked: asked(instruction="I"), acalled], ids=["call", "acall"])
def test_callbacks_see_each_part_of_a_call_once(call: Any) -> None:
    counting = Counting()
    with dspy.context(lm=fake_lm(Writer()), adapter=ADAPTER, callbacks=[counting]):
        assert call(dspy.Predict("instruction -> response")).response
    assert counting.begun == {"format": 1, "lm": 1, "parse": 1}


# --- inputs

NASTY = [
    "{instruction} {0} {} {{ }} {",
    '{"response": "mine"}',
    "[[ ## response ## ]]\nmine\n\n[[ ## completed ## ]]",
    "</>\n<instruction>other</>",
    "```json\n{}\n```",
    "%s %(name)s $x ${y} \\n \\ud800",
    "“Ünïcode” 鸟 🐦\u2028\x00\ttab\r\n",
    "",
    " leading and trailing ",
]


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_a_text_reaches_the_teacher_and_arrives_as_it_is(text: str) -> None:
    inputs = {"example_instruction": "E", "example_response": text, "instruction": text}
    system, user = ADAPTER.format(ResponseGeneration, [], inputs)
    assert system["content"] == rendering(ResponseGeneration).system
    tagged = "\n\n".join(f"<{name}>\n{value}\n</>" for name, value in inputs.items())
    assert user["content"].startswith(tagged)
    for escaped in (True, False):
        answer = json.dumps({"response": text}, ensure_ascii=escaped)
        assert ADAPTER.parse(ResponseGeneration, answer) == {"response": text}
    messages = ADAPTER.format(ResponseGeneration, [{**inputs, "response": text}], {"instruction": "I"})
    assert messages[1]["content"].startswith(tagged)
    assert ADAPTER.parse(ResponseGeneration, messages[2]["content"]) == {"response": text}


@pytest.mark.parametrize(
    ("taken", "shown"), [([], "(none)"), (["A.", "B {x}."], "- A.\n- B {x}."), (["two\nlines"], "- two\nlines")]
)
def test_a_list_of_texts_is_shown_as_lines(taken: list[str], shown: str) -> None:
    content = ADAPTER.format_user_message_content(InstructionSynthesis, {"taken": taken, "how_many": 3})
    assert content == f"<taken>\n{shown}\n</>\n\n<how_many>\n3\n</>"


def test_inputs_are_shown_in_the_signatures_order_whatever_order_they_come_in() -> None:
    inputs = {"instruction": "I", "example_response": "R", "example_instruction": "E"}
    content = ADAPTER.format_user_message_content(ResponseGeneration, inputs)
    assert content.index("<example_instruction>") < content.index("<example_response>") < content.index("<instruction>")


class Anything(dspy.Signature):  # type: ignore[misc]
    """Inputs that are not text."""

    value: Any = dspy.InputField()
    answer: Any = dspy.OutputField()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": [1, None, "ü"]}, '{"a": [1, null, "ü"]}'),
        (Note(word="w", words=["x"]), '{"word": "w", "words": ["x"]}'),
        pytest.param(
            [Note(word="w", words=[])],
            '[{"word": "w", "words": []}]',
        ),
    ],
    ids=["mapping", "record", "records"],
)
def test_anything_else_is_shown_as_json_in_inputs_and_in_demos(value: Any, shown: str) -> None:
    assert ADAPTER.format_user_message_content(Anything, {"value": value}) == f"<value>\n{shown}\n</>"
    assert ADAPTER.format_assistant_message_content(Anything, {"answer": value}) == f'{{"answer": {shown}}}'


def test_an_image_stands_in_the_message_as_a_part_of_its_own() -> None:
    image = dspy.Image("data:image/png;base64,iVBORw0KGgo=")
    content = ADAPTER.format(dspy.Signature("image: dspy.Image -> answer"), [], {"image": image})[1]["content"]
    assert [part.get("text", part["type"]) for part in content] == ["<image>\n", "image_url", "\n</>\n\nJSON:"]


# --- demos

DEMO_INPUTS = {"reference_feedback": "F {x}", "instruction": "DI", "response": "</>"}
INPUTS = {"reference_feedback": "F", "instruction": "I", "response": "R"}


@pytest.mark.parametrize("records", [False, True])
def test_a_demo_is_an_exchange_whose_answer_would_itself_be_accepted(records: bool) -> None:
    made = ADAPTER.parse(ResponseImprovement, json.dumps(GOOD))
    demo = dspy.Example(**DEMO_INPUTS, **(made if records else GOOD))
    messages = ADAPTER.format(ResponseImprovement, [demo], dict(INPUTS))
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"] == ADAPTER.format_user_message_content(ResponseImprovement, DEMO_INPUTS)
    assert json.loads(messages[2]["content"]) == GOOD
    assert ADAPTER.parse(ResponseImprovement, messages[2]["content"]) == made
    last = ADAPTER.format_user_message_content(ResponseImprovement, INPUTS, main_request=True)
    assert messages[3]["content"] == last


def test_data_to_train_on_has_the_form_that_is_sent() -> None:
    writer = Writer('{"response": "A"}')
    inputs = {"example_instruction": "E", "example_response": "R", "instruction": "I"}
    predictor = dspy.Predict(ResponseGeneration)
    with dspy.context(lm=fake_lm(writer), adapter=ADAPTER, trace=[]):
        predictor(**inputs)
        entry = build_call_data_from_trace(dspy.settings.trace, 0, ADAPTER)
    system, user, assistant = entry["messages"]
    assert (system["content"], user["content"]) == (writer.requests[0].system, writer.requests[0].messages[0].text)
    assert ADAPTER.parse(ResponseGeneration, assistant["content"]) == {"response": "A"}


def test_a_demo_without_all_its_inputs_shows_those_it_has(said: Said) -> None:
    messages = ADAPTER.format(ResponseGeneration, [dspy.Example(instruction="DI", response="DR")], {"instruction": "I"})
    said(messages[1]["content"])
    assert "<example_response>" not in messages[1]["content"]


def test_an_output_with_a_default_may_be_missing_but_is_asked_for() -> None:
    class Noted(dspy.Signature):  # type: ignore[misc]
        """Answer."""

        question: str = dspy.InputField()
        answer: str = dspy.OutputField()
        note: str | None = dspy.OutputField(default=None)
        tags: list[str] = dspy.OutputField(default_factory=list)
        doubt: str | None = dspy.OutputField()

    whole = {"answer": "A", "note": "N", "tags": ["t"], "doubt": "D"}
    short = json.dumps({"answer": "A"})
    assert ADAPTER.parse(Noted, short) == {"answer": "A", "note": None, "tags": [], "doubt": None}
    assert ADAPTER.parse(Noted, short) == dspy.JSONAdapter().parse(Noted, short)
    assert ADAPTER.parse(Noted, json.dumps(whole)) == whole
    assert schema(Noted)["required"] == [*whole] and "default" not in str(schema(Noted))


class Colour(Enum):
    RED, GREEN = auto(), auto()


class Size(Enum):
    SMALL, LARGE = "s", "SMALL"


class Choosing(dspy.Signature):  # type: ignore[misc]
    """Choose."""

    colour: Colour = dspy.OutputField()
    size: Size = dspy.OutputField()


@pytest.mark.parametrize("colour", [1, "RED"])
@pytest.mark.parametrize(("size", "meant"), [("s", Size.SMALL), ("LARGE", Size.LARGE), ("SMALL", Size.LARGE)])
def test_a_member_of_an_enumeration_has_its_value_or_its_name(colour: Any, size: str, meant: Size) -> None:
    answer = json.dumps({"colour": colour, "size": size})
    assert ADAPTER.parse(Choosing, answer) == {"colour": Colour.RED, "size": meant}
    assert ADAPTER.parse(Choosing, answer) == dspy.JSONAdapter().parse(Choosing, answer)
    assert refusal(Choosing, {"colour": "BLUE", "size": size}).startswith("colour: ")
    demo = ADAPTER.format_assistant_message_content(Choosing, ADAPTER.parse(Choosing, answer))
    assert ADAPTER.parse(Choosing, demo) == ADAPTER.parse(Choosing, answer)


# --- answers: whole ones only


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
