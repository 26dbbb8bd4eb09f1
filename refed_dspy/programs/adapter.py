"""How a signature becomes messages, and an answer becomes values.

DSPy's own `JSONAdapter` drops a field's bounds from the schema, sends no schema to a model it does not know, and
repairs broken JSON, so that a cut answer passes for a complete one. `SchemaAdapter` sends the bounded schema wherever
the teacher accepts one, and never repairs an answer. Everything that depends only on the signature is built once.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, cast

import dspy
from dspy.utils.exceptions import AdapterParseError
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

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
        name: (Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation, ...)
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
    )


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
    """`schema` in the form that strict decoders take: every property required, no others, no titles or descriptions."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {k: _strict(v) for k, v in schema.items() if k not in {"title", "description"} or isinstance(v, dict)}
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


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def _text(value: Any) -> str:
    """An input as the prompt shows it: text as it is, a list of texts as lines, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return "\n".join(f"- {item}" for item in value) or "(none)"
    return json.dumps(value, ensure_ascii=False, default=_plain)


class SchemaAdapter(dspy.JSONAdapter):
    """Signature → messages and a bounded JSON schema; answer → typed values, or `AdapterParseError`."""

    def __init__(self) -> None:
        super().__init__(use_native_function_calling=False)

    def __call__(self, lm: Any, lm_kwargs: JsonObject, signature: Any, demos: Any, inputs: Any) -> Any:
        kwargs = {**lm_kwargs, **_response_format(lm, signature)}
        return dspy.Adapter.__call__(self, lm, kwargs, signature, demos, inputs)

    async def acall(self, lm: Any, lm_kwargs: JsonObject, signature: Any, demos: Any, inputs: Any) -> Any:
        kwargs = {**lm_kwargs, **_response_format(lm, signature)}
        return await dspy.Adapter.acall(self, lm, kwargs, signature, demos, inputs)

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        return rendering(signature).system

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: Mapping[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        fixed = rendering(signature)
        # The closing tag need not repeat the input's name: that would cost tens of tokens a sample.
        tags = [f"<{k}>\n{_text(inputs[k])}\n</>" for k in fixed.inputs if k in inputs]
        # A small model that has read long inputs forgets the system message and leaves out the last fields. So the last
        # line asks for the JSON again, and names the fields if there are several (docs/log.md).
        names = ", ".join(fixed.outputs)
        last = ("JSON:" if len(fixed.outputs) == 1 else f"Write the JSON: {names}.") if main_request else ""
        return "\n\n".join(section for section in (prefix, *tags, suffix, last) if section)

    def format_assistant_message_content(
        self, signature: type[dspy.Signature], outputs: Mapping[str, Any], missing_field_message: str | None = None
    ) -> str:
        answer = {k: outputs.get(k, missing_field_message) for k in signature.output_fields}
        return json.dumps(answer, ensure_ascii=False, default=_plain)

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """The typed outputs of `completion`.

        Raises:
            AdapterParseError: no JSON object, or one that does not fit. Nothing is repaired.
        """
        fixed = rendering(signature)
        if not completion.strip():
            raise AdapterParseError(
                adapter_name="SchemaAdapter", signature=signature, lm_response=completion, message="the answer is empty"
            )
        try:
            parsed = fixed.answer.model_validate_json(_json_object(completion), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            raise AdapterParseError(
                adapter_name="SchemaAdapter",
                signature=signature,
                lm_response=completion,
                message=f"{where}: {first['msg']}" if where else first["msg"],
            ) from None
        if (tag := next((tag for tag in fixed.tags if tag in completion), None)) is not None:
            raise AdapterParseError(
                adapter_name="SchemaAdapter",
                signature=signature,
                lm_response=completion,
                message=f"copies the prompt: it holds its {tag}",
            )
        return {name: getattr(parsed, name) for name in fixed.outputs}


def _json_object(completion: str) -> str:
    """The text from the first brace to the last: models without a schema wrap their JSON in fences or words.

    If something opens before the first brace, or after the last closing one, the answer was cut: it is returned whole,
    and will not parse.
    """
    start, end = completion.find("{"), completion.rfind("}")
    whole = 0 <= start < end and "[" not in completion[:start] and "{" not in completion[end:]
    return completion[start : end + 1] if whole else completion


def _response_format(lm: Any, signature: Any) -> JsonObject:
    if "response_format" not in lm.supported_params:
        return {}
    if not lm.supports_response_schema:
        return {"response_format": {"type": "json_object"}}
    return {"response_format": rendering(signature).response_format}
