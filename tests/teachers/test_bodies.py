"""The bodies of requests, by the `openai` and `anthropic` packages' own types and OpenAI's published rules for strict
schemas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, get_type_hints

import dspy
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from refed_dspy import ReferenceLevelFeedback, TeacherConfig
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.judges import PairwiseJudge, RubricJudge
from refed_dspy.teachers import open_teacher
from tests.support.recording_endpoint import Listener, listening
from tests.support.two_ways import running_lm

BODY: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
KNOWN = set(get_type_hints(CompletionCreateParamsNonStreaming))
MESSAGE: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
IN_MESSAGE = set(get_type_hints(MessageCreateParamsNonStreaming))
STRICT = {"type", "properties", "required", "additionalProperties", "items", "enum", "$ref", "$defs", "anyOf"}
"""The keywords of a strict schema that OpenAI's guide allows, as far as ours could have them."""


def asked(there: Listener, **settings: Any) -> list[dict[str, Any]]:
    """The bodies of one request for each predictor of the method and of its judges."""
    teacher = open_teacher(TeacherConfig.model_validate({"api_base": there.base_url, "retries": 0, **settings}))

    async def ask() -> None:
        async with running_lm(teacher) as lm:
            for module in (ReferenceLevelFeedback(), PairwiseJudge(), RubricJudge()):
                for _, predictor in module.named_predictors():
                    inputs = dict.fromkeys(predictor.signature.input_fields, "x")
                    with dspy.context(lm=lm, adapter=SchemaAdapter()):
                        try:
                            await predictor.acall(**{**inputs, **({"taken": []} if "taken" in inputs else {})})
                        except Exception:  # noqa: BLE001 — what is answered is of no matter here
                            continue

    asyncio.run(ask())
    return there.bodies


def refused(_: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """What does not matter here."""
    return 400, {"type": "error", "error": {"message": "no", "type": "invalid_request_error"}}


def schemas(part: Any) -> Iterator[dict[str, Any]]:
    """Every schema in a schema."""
    if isinstance(part, dict):
        yield part
        for name in ("properties", "$defs"):
            for inner in (part.get(name) or {}).values():
                yield from schemas(inner)
        for inner in [part.get("items"), *(part.get("anyOf") or ())]:
            yield from schemas(inner)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "openai/gpt-4o-mini", "answer_schema": "strict"},
        {"model": "openai/gpt-5-mini", "answer_schema": "strict", "reasoning": "low"},
        {"model": "gateway/ours", "answer_schema": "strict", "temperature": 0.3, "params": {"top_p": 0.9}},
        {"model": "gateway/ours", "answer_schema": "none"},
    ],
    ids=str,
)
def test_bodies_are_what_the_api_takes(settings: dict[str, Any]) -> None:
    with listening(refused) as there:
        bodies = asked(there, **settings)
    assert len(bodies) == 7
    for body in bodies:
        BODY.validate_python(body)
        assert not body.keys() - KNOWN
        if settings["answer_schema"] == "none":
            assert "response_format" not in body
            continue
        form = body["response_format"]["json_schema"]
        assert form["strict"] is True and len(json.dumps(form)) < 15_000
        for schema in schemas(form["schema"]):
            assert not schema.keys() - STRICT
            if schema.get("type") == "object":
                assert schema["additionalProperties"] is False and set(schema["required"]) == set(schema["properties"])


@pytest.mark.parametrize(
    ("settings", "thinking"),
    [
        ({"model": "anthropic/claude-sonnet-4-5"}, None),
        ({"model": "anthropic/claude-sonnet-4-5", "answer_schema": "none"}, None),
        ({"model": "anthropic/claude-sonnet-4-5", "reasoning": "low"}, {"type": "enabled", "budget_tokens": 2_048}),
        ({"model": "anthropic/claude-haiku-4-5", "reasoning": "high"}, {"type": "enabled", "budget_tokens": 8_000}),
        ({"model": "anthropic/claude-opus-5", "reasoning": "high"}, {"type": "adaptive"}),
    ],
    ids=str,
)
def test_bodies_are_what_anthropic_takes(settings: dict[str, Any], thinking: dict[str, Any] | None) -> None:
    with listening(refused) as there:
        bodies = asked(there, **settings)
    assert len(bodies) == 7
    for body in bodies:
        MESSAGE.validate_python(body)
        assert not body.keys() - IN_MESSAGE
        assert body["max_tokens"] == (16_000 if "reasoning" in settings else 4_096)  # a cap relies on it
        assert body.get("thinking") == thinking
        form = (body.get("output_config") or {}).get("format")
        assert ("answer_schema" in settings) == (form is None)
        for schema in schemas(form and form["schema"]):
            assert not schema.keys() - STRICT
