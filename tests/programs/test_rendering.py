"""The fixed part of a prompt: a schema that is bounded everywhere, a short system message, no text changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import dspy
import pytest
from pydantic import BaseModel, Field

from refed_dspy.programs.adapter import rendering
from refed_dspy.signatures import (
    InstructionSynthesis,
    ResponseFeedback,
    ResponseGeneration,
    ResponseImprovement,
    instruction_feedback,
)
from tests.support.said import Said

STAGE_SIGNATURES = [
    instruction_feedback(),
    instruction_feedback({"tone": "How it sounds"}),
    ResponseFeedback,
    InstructionSynthesis,
    ResponseGeneration,
    ResponseImprovement,
]

VERSE = "in verse"
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
def test_all_is_bounded_closed_and_required(signature: type[dspy.Signature]) -> None:
    kinds = [part for part in subschemas(schema(signature)) if isinstance(part.get("type"), str)]
    strings = [part for part in kinds if part["type"] == "string" and "enum" not in part]
    assert strings
    assert all(part.get("maxLength", 0) > 0 for part in strings)
    assert all(part.get("maxItems", 0) > 0 for part in kinds if part["type"] == "array")
    objects = [part for part in kinds if part["type"] == "object"]
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
    assert not any(prose in text for prose in (str(Note.__doc__), str(Note.model_fields["word"].description)))
    assert list(schema(Bounded)["properties"]) == list(WHOLE)


@pytest.mark.parametrize(
    "changed",
    [
        ResponseGeneration.with_instructions(f"Answer {VERSE}."),
        ResponseGeneration.with_updated_fields("response", desc=VERSE),
        ResponseGeneration.with_updated_fields("instruction", desc=VERSE),
        ResponseGeneration.append("mood", dspy.OutputField(desc=VERSE), Word),
    ],
    ids=["instructions", "output", "input", "another output"],
)
def test_a_changed_signature_is_rendered_anew_and_the_same_one_is_not(changed: type[dspy.Signature]) -> None:
    assert rendering(ResponseGeneration) is rendering(ResponseGeneration)
    assert VERSE in rendering(changed).system and VERSE not in rendering(ResponseGeneration).system


# --- the system message


def test_the_system_message_tells_instructions_inputs_shape_and_outputs(said: Said) -> None:
    described = ResponseImprovement.with_updated_fields("instruction", desc="what was asked")
    said(rendering(described).system)


def test_a_field_whose_name_says_it_all_is_not_listed_and_a_shape_names_choices_and_types(said: Said) -> None:
    """Every call would pay for the words."""
    system = rendering(Bounded).system
    assert "${" not in system  # what DSPy puts where no description is given
    said(system)


def test_braces_in_instructions_and_descriptions_are_kept(said: Said) -> None:
    signature = ResponseGeneration.with_instructions("Use {placeholders} and {0} like {{these}}, 100%s.")
    said(rendering(signature.with_updated_fields("response", desc="with {curly} braces")).system)
