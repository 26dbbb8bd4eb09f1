"""Signature to messages and schema, answer to values: bounded everywhere, nothing repaired, no text changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import dspy
import pytest
from pydantic import BaseModel, Field

from refed_dspy.programs.adapter import SchemaAdapter, rendering
from refed_dspy.records import Analysis, ImplementationStrategy
from refed_dspy.signatures import (
    InstructionSynthesis,
    ResponseFeedback,
    ResponseGeneration,
    ResponseImprovement,
    instruction_feedback,
)
from tests.support.scripted_engine import SAMPLE_FIELDS, Writer, fake_lm

STAGE_SIGNATURES = [
    instruction_feedback(),
    instruction_feedback({"tone": "How it sounds"}),
    ResponseFeedback,
    InstructionSynthesis,
    ResponseGeneration,
    ResponseImprovement,
]
ADAPTER = SchemaAdapter()
GOOD = {**SAMPLE_FIELDS, "improved_response": "Better."}

Word = Annotated[str, Field(max_length=7)]


class Note(BaseModel):
    """Prose that is no business of a decoder."""

    word: Word = Field(description="a word")
    words: Annotated[list[Word], Field(max_length=3)]


class Bounded(dspy.Signature):  # type: ignore[misc]  # dspy has no types
    """Bounds at every place a field can have them."""

    question: str = dspy.InputField()
    by_type: Word = dspy.OutputField()
    by_field: str = dspy.OutputField(max_length=8)
    list_by_type: Annotated[list[Word], Field(max_length=2)] = dspy.OutputField()
    list_by_field: list[Word] = dspy.OutputField(min_length=1, max_length=4)
    nested: list[Note] = dspy.OutputField(max_length=5)
    optional: Word | None = dspy.OutputField()
    choice: Literal["yes", "no"] = dspy.OutputField()
    score: int = dspy.OutputField(ge=1, le=5)
    title: Word = dspy.OutputField()
    description: Word = dspy.OutputField()


WHOLE: dict[str, Any] = {
    "by_type": "a",
    "by_field": "b",
    "list_by_type": ["c"],
    "list_by_field": ["d"],
    "nested": [{"word": "e", "words": ["f"]}],
    "optional": None,
    "choice": "yes",
    "score": 3,
    "title": "g",
    "description": "h",
}


def schema(signature: type[dspy.Signature]) -> dict[str, Any]:
    whole: dict[str, Any] = rendering(signature).response_format["json_schema"]["schema"]
    return whole


def subschemas(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping inside `value`, itself included."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from subschemas(item)


# --- the schema


@pytest.mark.parametrize("signature", [*STAGE_SIGNATURES, Bounded], ids=lambda signature: str(signature.__name__))
def test_every_string_and_every_list_is_bounded(signature: type[dspy.Signature]) -> None:
    kinds = [part for part in subschemas(schema(signature)) if isinstance(part.get("type"), str)]
    strings = [part for part in kinds if part["type"] == "string" and "enum" not in part]
    assert strings
    assert all(part.get("maxLength", 0) > 0 for part in strings)
    assert all(part.get("maxItems", 0) > 0 for part in kinds if part["type"] == "array")


@pytest.mark.parametrize("signature", [*STAGE_SIGNATURES, Bounded], ids=lambda signature: str(signature.__name__))
def test_every_object_is_closed_and_every_property_required(signature: type[dspy.Signature]) -> None:
    objects = [part for part in subschemas(schema(signature)) if part.get("type") == "object"]
    assert objects
    for part in objects:
        assert part["required"] == list(part["properties"])
        assert part["additionalProperties"] is False


def test_each_bound_stands_where_it_was_set() -> None:
    properties, note = schema(Bounded)["properties"], schema(Bounded)["$defs"]["Note"]["properties"]
    word = {"type": "string", "maxLength": 7}
    assert properties["by_type"] == properties["title"] == properties["description"] == note["word"] == word
    assert properties["by_field"] == {"type": "string", "maxLength": 8}
    assert properties["list_by_type"] == {"type": "array", "items": word, "maxItems": 2}
    assert properties["list_by_field"] == {"type": "array", "items": word, "minItems": 1, "maxItems": 4}
    assert properties["nested"] == {"type": "array", "items": {"$ref": "#/$defs/Note"}, "maxItems": 5}
    assert properties["optional"] == {"anyOf": [word, {"type": "null"}]}
    assert properties["score"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert note["words"] == {"type": "array", "items": word, "maxItems": 3}


def test_no_prose_is_sent_in_the_schema() -> None:
    text = json.dumps(schema(Bounded))
    assert "no business of a decoder" not in text
    assert "a word" not in text
    assert list(schema(Bounded)["properties"]) == list(WHOLE)


def test_a_changed_signature_is_rendered_anew_and_the_same_one_is_not() -> None:
    assert rendering(ResponseGeneration) is rendering(ResponseGeneration)
    for changed in (
        ResponseGeneration.with_instructions("Answer in verse."),
        ResponseGeneration.with_updated_fields("response", desc="in verse"),
        ResponseGeneration.with_updated_fields("instruction", desc="in verse"),
        ResponseGeneration.append("mood", dspy.OutputField(desc="in verse"), Word),
    ):
        assert "in verse" in rendering(changed).system
        assert "in verse" not in rendering(ResponseGeneration).system


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


# --- the system message


def test_the_system_message_tells_instructions_inputs_shape_and_outputs() -> None:
    system = rendering(ResponseImprovement).system
    assert system.startswith(ResponseImprovement.instructions)
    assert '{"analysis":{"original_strengths":[string],' in system
    assert system.endswith(
        "\n- analysis: one to three short notes a list\n- implementation_strategy: same; why in a sentence"
    )
    described = ResponseImprovement.with_updated_fields("instruction", desc="what was asked")
    assert "\n\nYou are given:\n- instruction: what was asked\n\nJSON:\n" in rendering(described).system


def test_a_field_whose_name_says_it_all_is_not_listed() -> None:
    """Every call would pay for the words."""
    system = rendering(ResponseGeneration).system
    assert system == f'{ResponseGeneration.instructions}\n\nJSON:\n{{"response":string}}'
    assert "${" not in rendering(Bounded).system  # what DSPy puts where no description is given


def test_the_shape_names_choices_and_types() -> None:
    assert '"choice":"yes" | "no","score":integer' in rendering(Bounded).system


def test_braces_in_instructions_and_descriptions_are_kept() -> None:
    signature = ResponseGeneration.with_instructions("Use {placeholders} and {0} like {{these}}, 100%s.")
    signature = signature.with_updated_fields("response", desc="with {curly} braces")
    assert "Use {placeholders} and {0} like {{these}}, 100%s." in rendering(signature).system
    assert "- response: with {curly} braces" in rendering(signature).system


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
def test_an_inputs_text_reaches_the_teacher_as_it_is(text: str) -> None:
    inputs = {"example_instruction": "E", "example_response": text, "instruction": text}
    system, user = ADAPTER.format(ResponseGeneration, [], inputs)
    assert system["content"] == rendering(ResponseGeneration).system
    assert user["content"] == (
        f"<example_instruction>\nE\n</>\n\n<example_response>\n{text}\n</>\n\n<instruction>\n{text}\n</>\n\nJSON:"
    )


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_an_answers_text_arrives_as_it_was_written(text: str) -> None:
    for escaped in (True, False):
        assert ADAPTER.parse(ResponseGeneration, json.dumps({"response": text}, ensure_ascii=escaped)) == {
            "response": text
        }


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


# --- demos

DEMO_INPUTS = {"reference_feedback": "F {x}", "instruction": "DI", "response": "</>"}
INPUTS = {"reference_feedback": "F", "instruction": "I", "response": "R"}


@pytest.mark.parametrize(
    "outputs",
    [
        GOOD,
        {
            "analysis": Analysis.model_validate(GOOD["analysis"]),
            "implementation_strategy": ImplementationStrategy.model_validate(GOOD["implementation_strategy"]),
            "improved_response": GOOD["improved_response"],
        },
    ],
    ids=["plain", "records"],
)
def test_a_demo_is_an_exchange_whose_answer_would_itself_be_accepted(outputs: dict[str, Any]) -> None:
    demo = dspy.Example(**DEMO_INPUTS, **outputs)
    messages = ADAPTER.format(ResponseImprovement, [demo], dict(INPUTS))
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"] == ADAPTER.format_user_message_content(ResponseImprovement, DEMO_INPUTS)
    assert json.loads(messages[2]["content"]) == GOOD
    assert ADAPTER.parse(ResponseImprovement, messages[2]["content"])["improved_response"] == "Better."
    last = ADAPTER.format_user_message_content(ResponseImprovement, INPUTS, main_request=True)
    assert messages[3]["content"] == last
    assert last.endswith("</>\n\nWrite the JSON: analysis, implementation_strategy, improved_response.")


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_a_demos_text_is_kept_as_it_is(text: str) -> None:
    demo = {"example_instruction": "E", "example_response": "R", "instruction": text, "response": text}
    messages = ADAPTER.format(ResponseGeneration, [demo], {"instruction": "I"})
    assert f"<instruction>\n{text}\n</>" in messages[1]["content"]
    assert ADAPTER.parse(ResponseGeneration, messages[2]["content"]) == {"response": text}


def test_a_demo_without_all_its_inputs_shows_those_it_has() -> None:
    messages = ADAPTER.format(ResponseGeneration, [dspy.Example(instruction="DI", response="DR")], {"instruction": "I"})
    assert "<instruction>\nDI\n</>" in messages[1]["content"]
    assert "<example_response>" not in messages[1]["content"]
