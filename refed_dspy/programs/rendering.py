"""The fixed part of a signature's prompt: its system message, the shape of its answer, and the schema for decoders."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, cast, get_args

import dspy
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Rendering:
    """What depends only on a signature: the system message, the answer's Pydantic model and its JSON schema."""

    system: str
    answer: type[BaseModel]
    response_format: JsonObject
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """Names of the input and output fields."""
    tags: tuple[str, ...]
    """Tags of the prompt that an answer must not contain. Tags of one word are left out: other texts have them too."""
    plain: bool
    """Whether no field has a type of DSPy's own (tools, history, images), which its adapters prepare by themselves."""

    @cached_property
    def typed_format(self) -> JsonObject:
        """`response_format` in the form that lm15 takes: the same object for every call of a signature."""
        return {"type": "json_schema", **self.response_format["json_schema"]}


def rendering(signature: type[dspy.Signature]) -> Rendering:
    """The fixed part of `signature`'s prompt. Cached by class: an optimizer makes a new class for a changed prompt."""
    return _rendering(cast(Hashable, signature))


@lru_cache(maxsize=512)
def _rendering(signature: Any) -> Rendering:
    outputs: dict[str, Any] = {
        name: (
            Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation,
            _default(field),
        )
        for name, field in signature.output_fields.items()
    }
    answer = create_model("Answer", __config__=ConfigDict(extra="ignore"), **outputs)
    schema = _strict(answer.model_json_schema())
    system = _system(signature, _shape(schema, schema))
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
    inputs = tuple(signature.input_fields)
    return Rendering(
        system=system,
        answer=answer,
        response_format=response_format,
        inputs=inputs,
        outputs=tuple(signature.output_fields),
        tags=tuple(f"<{name}>" for name in inputs if "_" in name),
        plain=not any(_is_dspy_type(field.annotation) for field in signature.fields.values()),
    )


def _default(field: FieldInfo) -> Any:
    """What an answer has where it leaves a field out; an ellipsis where it must not."""
    if field.is_required():
        return ...
    return Field(default_factory=field.default_factory) if field.default_factory else field.default


def _is_dspy_type(annotation: Any) -> bool:
    kinds = (annotation, *get_args(annotation))
    return any(isinstance(kind, type) and issubclass(kind, dspy.Type | dspy.History) for kind in kinds)


def _system(signature: Any, shape: str) -> str:
    """The system message. Every call pays for it, so a field whose name says enough has no description here."""
    inputs, outputs = _described(signature.input_fields), _described(signature.output_fields)
    sections = [signature.instructions, f"You are given:\n{inputs}" if inputs else ""]
    sections.append(f"JSON:\n{shape}" + (f"\n{outputs}" if outputs else ""))
    return "\n\n".join(section for section in sections if section)


def _described(fields: Mapping[str, Any]) -> str:
    """A line for each field that has a description. DSPy's default description is `${name}`."""
    described = ((name, str((field.json_schema_extra or {}).get("desc", ""))) for name, field in fields.items())
    return "\n".join(f"- {name}: {desc}" for name, desc in described if desc and desc != f"${{{name}}}")


def _strict(schema: Any) -> Any:
    """`schema` in the form that strict decoders take: every property required, no others, no titles, descriptions or
    defaults."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        k: _strict(v) for k, v in schema.items() if k not in {"title", "description", "default"} or isinstance(v, dict)
    }
    if strict.get("type") == "object" and "properties" in strict:
        strict |= {"required": list(strict["properties"]), "additionalProperties": False}
    return strict


def _shape(schema: JsonObject, root: JsonObject) -> str:
    """A sketch of a schema, or of a part of `root`, for the prompt: {"notes":[string]}."""
    if "$ref" in schema:
        return _shape(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    if "properties" in schema:
        inner = ",".join(f'"{name}":{_shape(value, root)}' for name, value in schema["properties"].items())
        return "{" + inner + "}"
    if schema.get("type") == "array":
        return f"[{_shape(schema.get('items', {}), root)}]"
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    return str(schema.get("type", "value"))
