"""What models of real providers refuse, in the words with which they refuse it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.wires import Refused

_BOUNDS = ("maxLength", "minLength", "maxItems", "minItems")


def _no_max_tokens(body: dict[str, Any]) -> str:
    if "max_tokens" not in body:
        return ""
    return "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


def _no_new_field(body: dict[str, Any]) -> str:
    return "Unrecognized request argument supplied: max_completion_tokens" if "max_completion_tokens" in body else ""


def _default_temperature(body: dict[str, Any]) -> str:
    if body.get("temperature", 1) == 1:
        return ""
    return (
        f"Unsupported value: 'temperature' does not support {body['temperature']:g} with this model. Only the default "
        "(1) value is supported."
    )


def _no_temperature(body: dict[str, Any]) -> str:
    return "`temperature` is deprecated for this model." if "temperature" in body else ""


def _thinks_at_one(body: dict[str, Any]) -> str:
    if "thinking" not in body or body.get("temperature", 1) == 1:
        return ""
    return "`temperature` may only be set to 1 when thinking is enabled or in adaptive mode."


def _no_reasoning(body: dict[str, Any]) -> str:
    return "Unrecognized request argument supplied: reasoning_effort" if "reasoning_effort" in body else ""


def _no_bounds(body: dict[str, Any]) -> str:
    bound = next((name for name in _keys(body.get("response_format")) if name in _BOUNDS), "")
    if not bound:
        return ""
    return f"Invalid schema for response_format 'answer': In context=('properties', 'x'), '{bound}' is not permitted."


def _no_schema(body: dict[str, Any]) -> str:
    kind = (body.get("response_format") or {}).get("type")
    return "response_format type json_schema is not supported by this model" if kind == "json_schema" else ""


def _no_logprobs(body: dict[str, Any]) -> str:
    return "Unsupported parameter: 'logprobs' is not supported with this model." if body.get("logprobs") else ""


def _keys(value: Any) -> Iterator[str]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        if isinstance(key, str):
            yield key
        yield from _keys(part)


RULES: dict[str, Callable[[dict[str, Any]], str]] = {
    "no max_tokens": _no_max_tokens,
    "no max_completion_tokens": _no_new_field,
    "default temperature": _default_temperature,
    "no temperature": _no_temperature,
    "thinks at temperature 1": _thinks_at_one,
    "no reasoning": _no_reasoning,
    "no bounds": _no_bounds,
    "no schema": _no_schema,
    "no logprobs": _no_logprobs,
}
"""Name → what is wrong with a request's body by this rule; empty where nothing is."""


def keep_rules(names: list[str], body: dict[str, Any]) -> None:
    """Raises Refused with the words of the first of these rules that a request breaks."""
    for name in names:
        if words := RULES[name](body):
            quoted = re.search(r"'(\w+)'", words)
            raise Refused(400, "unsupported_parameter", words, param=quoted[1] if quoted else None)
