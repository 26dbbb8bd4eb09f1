"""How a signature's call becomes messages, and an answer becomes values.

DSPy's own `JSONAdapter` drops a field's bounds from the schema, sends no schema to a model it does not know, and
repairs broken JSON, so that a cut answer passes for a complete one. `SchemaAdapter` sends the bounded schema wherever
the teacher accepts one, and never repairs an answer. Everything that depends only on the signature is built once.
Each call carries the check of its answer (`Fit`), so that a recorded teacher asks again before the answer gets here.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from enum import EnumType
from functools import cached_property, lru_cache, reduce
from itertools import accumulate
from types import NoneType, UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from refed_dspy.errors import ConfigError
from refed_dspy.programs.fast_path import DirectCall, DirectEngines, direct_engines
from refed_dspy.programs.lm_errors import in_transit
from refed_dspy.programs.question import Fit, UnnamedStage, current_question, fitting
from refed_dspy.programs.reasoning import split_reasoning

MOST_REPAIRED, DEEPEST_REPAIRED = 10_000, 100
"""Characters of broken JSON that is given to DSPy for repair, and brackets open at once: its time grows with the square
of both, to hours."""
QUICK = 500
"""Characters that are repaired in no time."""
JsonObject = dict[str, Any]


class SchemaAdapter(dspy.JSONAdapter):
    """Signature → messages and a bounded JSON schema; answer → typed values, or `AdapterParseError`.

    This package's programs ask through it wherever they are called, unless the caller set an adapter. Set it yourself
    to have other modules ask in the same form, and optimizers that write data in a form:

        import dspy
        from refed_dspy import SchemaAdapter

        adapter = SchemaAdapter()
        signature = dspy.Signature("question -> answer")
        print(adapter.format(signature, demos=[], inputs={"question": "Why are there tides?"})[1]["content"])
        print(adapter.parse(signature, '{"answer": "The moon."}'))
    """

    def __init__(self, callbacks: list[BaseCallback] | None = None) -> None:
        super().__init__(callbacks=callbacks, use_native_function_calling=False)

    def __call__(self, lm: Any, lm_kwargs: JsonObject, signature: Any, demos: Any, inputs: Any) -> Any:
        fit, fixed = SchemaFit(self, signature), rendering(signature)
        _note(lm)
        with fitting(fit):
            if (engines := self._direct(fixed, lm, lm_kwargs)) is not None:
                messages = messages_of(self, signature, demos, inputs)
                call = DirectCall(lm, lm_kwargs, messages, fixed.typed_format)
                return [fit.values(call.wait(engines.waiting))]
            kwargs = {**lm_kwargs, **_response_format(lm, signature)}
            self._teach_listeners()
            return dspy.Adapter.__call__(self, lm, kwargs, signature, demos, inputs)

    async def acall(self, lm: Any, lm_kwargs: JsonObject, signature: Any, demos: Any, inputs: Any) -> Any:
        fit, fixed = SchemaFit(self, signature), rendering(signature)
        _note(lm)
        with fitting(fit):
            if (engines := self._direct(fixed, lm, lm_kwargs)) is not None:
                messages = messages_of(self, signature, demos, inputs)
                call = DirectCall(lm, lm_kwargs, messages, fixed.typed_format)
                return [fit.values(await call.ask(engines.awaited))]
            if only_in_threads(lm):
                return await dspy.asyncify(self)(lm, lm_kwargs, signature, demos, inputs)
            kwargs = {**lm_kwargs, **_response_format(lm, signature)}
            self._teach_listeners()
            return await dspy.Adapter.acall(self, lm, kwargs, signature, demos, inputs)

    def _direct(self, fixed: Rendering, lm: Any, lm_kwargs: JsonObject) -> DirectEngines | None:
        """The engines of `lm` where nothing observes a call, and no field needs DSPy's own preparation."""
        return direct_engines(lm, lm_kwargs) if fixed.plain and not self.callbacks else None

    def _teach_listeners(self) -> None:
        """Have a StreamListener, which knows adapters by name, hear answers in this form: it is that of JSONAdapter."""
        for listener in dspy.settings.get("stream_listeners") or ():
            listener.adapter_identifiers[type(self).__name__] = listener.adapter_identifiers["JSONAdapter"]

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

    def format_finetune_data(
        self, signature: type[dspy.Signature], demos: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> dict[str, list[Any]]:
        """A call and its answer as an entry of data to train on, as `dspy.BootstrapFinetune` writes them: `messages`,
        the last of which is the answer."""
        entry: dict[str, list[Any]] = dspy.ChatAdapter.format_finetune_data(self, signature, demos, inputs, outputs)
        return entry

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """The typed outputs of `completion`.

        Raises:
            AdapterParseError: no JSON object, or one that does not fit. Nothing is repaired.
        """
        parsed = self.parsed(signature, completion)
        return {name: getattr(parsed, name) for name in rendering(signature).outputs}

    def parsed(self, signature: type[dspy.Signature], completion: str) -> BaseModel:
        """`parse`, as one Pydantic model."""
        fixed, answer = rendering(signature), split_reasoning(completion)[1]
        if not answer.strip():
            raise _unfit(signature, completion, "the answer is empty")
        answer = _json_object(answer)
        try:
            parsed = fixed.answer.model_validate_json(answer, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            raise _unfit(signature, completion, f"{where}: {first['msg']}" if where else first["msg"]) from None
        if (tag := next((tag for tag in fixed.tags if tag in answer), None)) is not None:
            raise _unfit(signature, completion, f"copies the prompt, including its {tag}")
        _refuse_blanks(signature, completion, {name: getattr(parsed, name) for name in fixed.outputs})
        return parsed


SchemaAdapter.format = dspy.ChatAdapter.format  # DSPy wraps it for callbacks once more in each class


def messages_of(adapter: Any, signature: Any, demos: Any, inputs: Any) -> list[JsonObject]:
    """What `adapter` would send. All that asks for it does so here, since DSPy 3.5 gives it another form
    (docs/dspy-3-5.md)."""
    if demos or type(adapter) is not SchemaAdapter or not rendering(signature).plain:
        messages: list[JsonObject] = adapter.format(signature, demos, inputs)
        return messages
    content = adapter.format_user_message_content(signature, inputs, main_request=True)
    return [{"role": "system", "content": rendering(signature).system}, {"role": "user", "content": content}]


def _refuse_blanks(signature: Any, completion: str, values: Mapping[str, Any]) -> None:
    """No output of a stage may be empty; what else a program asks for may."""
    question = current_question()
    if question is None or isinstance(question, UnnamedStage):
        return
    for name, value in values.items():
        if isinstance(value, str) and not value.strip():
            raise _unfit(signature, completion, f"{name} is empty")


def _unfit(signature: Any, completion: str, why: str) -> AdapterParseError:
    return AdapterParseError(adapter_name="SchemaAdapter", signature=signature, lm_response=completion, message=why)


class SchemaFit(Fit):
    """The check of one call's answer. It keeps what it parsed, so that the answer is parsed once."""

    def __init__(self, adapter: SchemaAdapter, signature: Any) -> None:
        self._adapter, self._signature = adapter, signature
        self._outputs = ""
        self._parsed: BaseModel | None = None

    def checked(self, text: str) -> tuple[str, None]:
        parsed = self._adapter.parsed(self._signature, text)
        self._outputs, self._parsed = parsed.model_dump_json(by_alias=True), parsed
        return self._outputs, None

    def values(self, text: str) -> dict[str, Any]:
        """The typed outputs of the answer that came back. Raises AdapterParseError."""
        parsed = self._parsed if self._parsed is not None and text == self._outputs else None
        parsed = parsed or self._adapter.parsed(self._signature, text)
        return {name: getattr(parsed, name) for name in rendering(self._signature).outputs}


class _Checking:
    """What a caller's own adapter gets in front of its class: its calls carry the check of their answers."""

    def __call__(self, lm: Any, lm_kwargs: JsonObject, signature: Any, demos: Any, inputs: Any) -> Any:
        _note(lm)
        with fitting(_AdapterFit(cast(dspy.ChatAdapter, self), signature)):
            return super().__call__(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]

    async def acall(self, lm: Any, lm_kwargs: JsonObject, signature: Any, demos: Any, inputs: Any) -> Any:
        _note(lm)
        with fitting(_AdapterFit(cast(dspy.ChatAdapter, self), signature)):
            return await super().acall(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]


@lru_cache(maxsize=32)
def _checking(kind: Any) -> type[dspy.Adapter]:
    """`kind` with `_Checking` in front, under the same name, since prompts' digests have it."""
    checking: type[dspy.Adapter] = type(kind.__name__, (_Checking, kind), {"__module__": kind.__module__})
    for name in ("format", "parse"):  # DSPy wraps them for callbacks in each class; once is enough
        if name in vars(checking):
            delattr(checking, name)
    return checking


class _AdapterFit(Fit):
    """The check of one call's answer by the caller's adapter, and by the fields' bounds, which it may not keep.

    Where a ChatAdapter would ask a second time for JSON, an answer that is JSON already is taken.
    """

    slow = True  # where the adapter repairs JSON

    def __init__(self, adapter: dspy.ChatAdapter, signature: Any) -> None:
        self._adapter, self._signature = adapter, signature

    def checked(self, text: str) -> tuple[str, str]:
        signature, answer = self._signature, rendering(self._signature).answer
        try:
            values, text = self._read(self._adapter, text)
        except AdapterParseError:
            if isinstance(self._adapter, dspy.JSONAdapter) or not self._adapter.use_json_adapter_fallback:
                raise
            values, _ = self._read(dspy.JSONAdapter(), text)
            text = self._adapter.format_assistant_message_content(signature, values)
            values = self._adapter.parse(signature, text)
        _refuse_blanks(signature, text, values)
        try:
            outputs = answer.model_construct(**values).model_dump_json(warnings=False, by_alias=True)
            answer.model_validate_json(outputs)
        except ValueError as error:  # pydantic's own errors are ValueErrors, too
            raise _unfit(signature, text, f"does not fit its fields: {error}") from None
        return outputs, text

    def _read(self, adapter: dspy.ChatAdapter, text: str) -> tuple[dict[str, Any], str]:
        """The typed values of an answer, and the text that the adapter, which reads it once more, finds them in without
        a long repair. Raises AdapterParseError."""
        signature, repaired = self._signature, False
        if isinstance(adapter, dspy.JSONAdapter):
            text = text if _is_json(text) or not _is_json(inner := _json_object(text)) else inner
            repaired = self._is_repaired(text)
        elif others := [name for name, field in signature.output_fields.items() if field.annotation is not str]:
            as_texts = reduce(lambda made, name: made.with_updated_fields(name, type_=str), others, signature)
            texts = adapter.parse(as_texts, text) if len(text) > QUICK else {}
            repaired = sum(self._is_repaired(str(texts.get(name, ""))) for name in others) > 0
        values = adapter.parse(signature, text)
        return values, adapter.format_assistant_message_content(signature, values) if repaired else text

    def _is_repaired(self, text: str) -> bool:
        """Whether DSPy will repair a text, and take its time for it. Raises AdapterParseError where it may not."""
        if len(text) <= QUICK or _is_json(text):
            return False
        if len(text) > MOST_REPAIRED or _depth(text) > DEEPEST_REPAIRED:
            raise _unfit(self._signature, text, "is no JSON, and too long or too deep to be repaired")
        return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _depth(text: str) -> int:
    """How many brackets are open at once, at most, whether inside of strings or not."""
    steps = (1 if bracket in "{[(" else -1 for bracket in re.findall(r"[][{}()]", text))
    return max(accumulate(steps, lambda depth, step: max(0, depth + step)), default=0)


def checked_adapter() -> dspy.Adapter:
    """The adapter of this context's calls, which checks their answers: `SchemaAdapter` unless the caller set one.

    An adapter of the caller's that is no ChatAdapter is left as it is. Raises ConfigError for one that asks a second
    model, which the ledger would not see.
    """
    adapter = dspy.settings.adapter or SchemaAdapter()
    if isinstance(adapter, dspy.TwoStepAdapter):
        raise ConfigError("adapter: a TwoStepAdapter calls a second model outside caps and ledger; set another adapter")
    if not isinstance(adapter, dspy.ChatAdapter) or isinstance(adapter, SchemaAdapter | _Checking):
        return adapter
    checked = copy.copy(adapter)
    checked.__class__ = _checking(cast(Hashable, type(adapter)))
    return checked


def _plain(value: Any) -> Any:
    """A value that is not JSON as an answer has it."""
    return to_jsonable_python(value, fallback=str)


def _text(value: Any) -> str:
    """An input as the prompt shows it: text as it is, a list of texts as lines, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dspy.Type) and isinstance(text := _plain(value), str):
        return text  # an image or the like, which DSPy puts in the place of this text
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return "\n".join(f"- {item}" for item in value) or "(none)"
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _note(lm: Any) -> None:
    """Have the question know which language model it is put to, unless that is a recorded one, which knows its keys.

    Raises ConfigError for one that no ledger sees, where the others are recorded.
    """
    if hasattr(lm, "recorded"):
        return
    if dspy.settings.get("refed_roles") is not None:
        reason = f"{lm.model}: a language model outside caps and ledger; name it where the work is called instead"
        if (stop := dspy.settings.get("refed_stop")) is not None:
            stop(ConfigError(reason))
        raise in_transit(ConfigError(reason))
    if (question := current_question()) is not None:
        if isinstance(question, UnnamedStage):
            question.called_by(reversed(dspy.settings.caller_modules or ()))
        question.lm = lm


def only_in_threads(lm: Any) -> bool:
    """Whether a language model cannot be awaited: a class of the caller's that implements `forward` alone."""
    return isinstance(lm, dspy.BaseLM) and type(lm).aforward is dspy.BaseLM.aforward


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


# --- the fixed part of a signature's prompt: its system message, the shape of its answer, and the schema for decoders


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
        name: (_checked_type(field), _default(field)) for name, field in signature.output_fields.items()
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


def _checked_type(field: FieldInfo) -> Any:
    """What an answer's value must be: within its bounds, and of an enumeration a member's value or name."""
    more = list(field.metadata)
    if isinstance(kind := field.annotation, EnumType):

        def member(value: Any, by_value: ValidatorFunctionWrapHandler) -> Any:
            named = isinstance(value, str) and value not in [each.value for each in kind]
            return kind[value] if named and value in kind.__members__ else by_value(value)

        more.append(WrapValidator(member))
    return Annotated[(kind, *more)] if more else kind


def _default(field: FieldInfo) -> Any:
    """What an answer has where it leaves a field out; an ellipsis where it must not. As in DSPy, a field that may be
    None is None then."""
    if field.is_required():
        may_be_none = get_origin(field.annotation) in {Union, UnionType} and NoneType in get_args(field.annotation)
        return None if may_be_none else ...
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
