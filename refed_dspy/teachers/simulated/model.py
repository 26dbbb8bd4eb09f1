"""The simulated model: it answers requests in this process, as an endpoint would, by their schema and field names."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from dspy.lm15 import Message, Request, Response, RouterConfig, TokenLogprob, TopLogprob, Usage

from refed_dspy.ledger.history import SIMULATED
from refed_dspy.teachers.requests import text_of
from refed_dspy.teachers.route import Route
from refed_dspy.teachers.simulated import words

_INPUT = re.compile(
    r"^<(\w+)>\n(.*?)\n</>|^\[\[ ## (\w+) ## \]\]\n(.*?)(?=\n\n\[\[ ## |\n\nRespond with |\Z)", re.DOTALL | re.MULTILINE
)
"""An input as this package's adapter shows it, or as DSPy's own do."""
_ASKED_FOR = "\n\nRespond with the corresponding output fields"
_FIELD = re.compile(r"\[\[ ## (\w+) ## \]\]")
_NOTE = re.compile(r"^\{(\w+)\} +# note: [^{\n]*?(?:one of: (.+)|JSON schema: (\{.*\}))$", re.MULTILINE)
"""What DSPy's ChatAdapter says of a field that is no text: its choices, or its schema."""
_DEEP = 5
"""Nesting from which lists are empty and optional fields left out, so that recursive schemas end."""
_VERDICTS = ((1.5, "A>>B"), (0.5, "A>B"), (-0.5, "A=B"), (-1.5, "B>A"), (-math.inf, "B>>A"))
_LABEL = re.compile(r"\[\[[A-Z<>=]{1,6}\]\]")
"""A verdict as judges of free text are asked for it."""
Inputs = Mapping[str, str]


class SimulatedRoute(Route):
    """The route to the simulated model, which is in this process."""

    def async_lm(self, transport: Any) -> SimulatedModel:  # noqa: ARG002 — nothing is sent
        return SimulatedModel()


ROUTE = SimulatedRoute(SIMULATED, SIMULATED, SIMULATED, RouterConfig(), (), "bounded", None)


class SimulatedModel:
    """Answers a request with texts from `words`. Equal requests with equal seeds get equal answers."""

    async def complete(self, request: Request) -> Response:
        """A fitting answer: JSON where the request has a schema, else prose."""
        await asyncio.sleep(0)  # as at an endpoint, others' turns come in between
        system, asked = text_of(request.system), "\n".join(map(text_of, request.messages))
        seed = (request.config.extensions or {}).get("seed", 0)
        rng = random.Random(sha256(f"{seed}\0{system}\0{asked}".encode("utf-8", "surrogatepass")).digest())
        schema = (request.config.response_format or {}).get("schema")
        inputs = inputs_of(text_of(request.messages[-1]))
        if request.config.logprobs is not None:
            return _verdict(rng, _tokens(system + asked))
        if schema:
            text = json.dumps(_Answer(rng, schema, inputs).value(schema))
        else:
            text = _in_fields(rng, system, asked) or _prose(rng, asked) + _label(rng, system)
        usage = Usage(input_tokens=_tokens(system + asked), output_tokens=_tokens(text))
        return Response(
            id=SIMULATED, model=SIMULATED, message=Message.assistant(text), finish_reason="stop", usage=usage
        )


def inputs_of(message: str) -> Inputs:
    """The inputs that a message shows: name → text."""
    return {name or other: text or more for name, text, other, more in _INPUT.findall(message)}


class _Answer:
    """One answer: values for a JSON `schema`, by the names of their fields."""

    def __init__(self, rng: random.Random, schema: Mapping[str, Any], inputs: Inputs) -> None:
        self.rng, self.root, self.inputs = rng, schema, inputs

    def value(self, schema: Any, name: str = "", depth: int = 0) -> Any:
        """A value of the field `name`, `depth` levels down, that fits its schema."""
        schema = self._resolved(schema)
        if options := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
            return self._chosen(name, options)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = kind[0] if isinstance(kind, list) else kind
        writers: dict[str, Callable[[], Any]] = {
            "object": lambda: self._object(schema, depth),
            "array": lambda: self._list(schema, name, depth),
            "integer": lambda: math.ceil(self._number(schema)),
            "number": lambda: self._number(schema),
            "boolean": lambda: self.rng.random() < 0.5,
            "null": lambda: None,
        }
        return writers[kind]() if kind in writers else self._text(name)[: schema.get("maxLength")]

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """`schema` without references and choices: the first of several."""
        while "$ref" in schema or "anyOf" in schema or "allOf" in schema:
            if "$ref" not in schema:
                schema = (schema.get("anyOf") or schema["allOf"])[0]
                continue
            steps, schema = schema["$ref"].split("/")[1:], self.root
            for step in steps:
                schema = schema[step]
        resolved: Mapping[str, Any] = schema
        return resolved

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        needed = schema.get("required", ())
        fields = {name: part for name, part in schema.get("properties", {}).items() if depth < _DEEP or name in needed}
        return {name: self.value(part, name, depth + 1) for name, part in fields.items()}

    def _list(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        asked = self.inputs.get("how_many", "")
        count = int(asked) if name == "new_instructions" and asked.isdecimal() else 2 if depth < _DEEP else 0
        count = max(schema.get("minItems", 0), min(count, schema.get("maxItems", count)))
        return [self.value(schema.get("items", {}), name, depth + 1) for _ in range(count)]

    def _number(self, schema: Mapping[str, Any]) -> float:
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10))
        return float(self.rng.uniform(low, high))

    def _chosen(self, name: str, options: list[Any]) -> Any:
        """One of the `options`; as a verdict or a grade, what the texts' quality says."""
        if name == "verdict" and "answer_a" in self.inputs:
            ahead = words.quality(self.rng, self.inputs["answer_a"]) - words.quality(self.rng, self.inputs["answer_b"])
            verdict = next(verdict for least, verdict in _VERDICTS if ahead >= least)
            return verdict if verdict in options else self.rng.choice(options)
        if name == "grade" and "text" in self.inputs:
            grade = str(max(1, min(5, round(3 + words.quality(self.rng, self.inputs["text"])))))
            return grade if grade in options else self.rng.choice(options)
        return self.rng.choice(options)

    def _text(self, name: str) -> str:
        prompt = self.inputs.get("current_instruction") or self.inputs.get("basic_instruction")
        if name in {"new_instruction", "proposed_instruction"} and prompt:
            return f"{prompt}\n{words.note(self.rng, 'advice')}"
        if name in {"new_instruction", "new_instructions"}:
            return words.instruction(self.rng)
        instruction = self.inputs.get("instruction", "")
        if name in {"improved_response", "better_response"}:
            return words.improved(self.rng, self.inputs.get("response", ""), instruction)
        if name in {"response", "new_response", "answer"}:
            return words.response(self.rng, instruction)
        return words.note(self.rng, name)


def _in_fields(rng: random.Random, system: str, asked: str) -> str:
    """An answer in the fields that DSPy's ChatAdapter asks for; empty where no fields are asked for."""
    before, wanted, names = asked.rpartition(_ASKED_FOR)
    if not wanted:
        return ""
    notes = {
        name: {"enum": either.split("; ")} if either else json.loads(schema)
        for name, either, schema in _NOTE.findall(system)
    }
    inputs, sections = inputs_of(before), []
    for name in _FIELD.findall(names):
        schema = notes.get(name, {"type": "string"})
        value = _Answer(rng, schema, inputs).value(schema, name)
        sections.append(f"[[ ## {name} ## ]]\n{value if isinstance(value, str) else json.dumps(value)}")
    return "\n\n".join(sections[:-1])  # the last is the marker of the end


def _verdict(rng: random.Random, read: int) -> Response:
    """A verdict in one token, as AlpacaEval's code asks for one, with the probabilities of both."""
    chance = rng.uniform(0.05, 0.95)
    ranked = sorted(((chance, "m"), (1 - chance, "M")), reverse=True)
    top = tuple(TopLogprob(token=token, logprob=math.log(share)) for share, token in ranked)
    token = TokenLogprob(token=top[0].token, logprob=top[0].logprob, top=top)
    return Response(
        id=SIMULATED, model=SIMULATED, message=Message.assistant(token.token), finish_reason="stop", logprobs=(token,),
        usage=Usage(input_tokens=read, output_tokens=1),
    )  # fmt: skip


def _label(rng: random.Random, system: str) -> str:
    """One of the labels that a judge is told to choose from; empty where there are none."""
    labels = sorted({*_LABEL.findall(system)})
    return f"\n\n{rng.choice(labels)}" if labels else ""


def _prose(rng: random.Random, asked: str) -> str:
    """An answer to a request without a schema; in a fence where it asks for one, as GEPA's does."""
    text = words.response(rng, asked)
    return f"```\n{text}\n```" if "```" in asked else text


def _tokens(text: str) -> int:
    return max(1, len(text) // 4)
