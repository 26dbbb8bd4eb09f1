"""The bodies of requests, by the `openai` package's own types and OpenAI's published rules for strict schemas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, get_type_hints

import dspy
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from refed_dspy import ReferenceLevelFeedback, TeacherConfig
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.judges import PairwiseJudge, RubricJudge
from refed_dspy.teachers import open_teacher
from tests.support.recording_endpoint import Listener, listening

BODY: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
KNOWN = set(get_type_hints(CompletionCreateParamsNonStreaming))
STRICT = {"type", "properties", "required", "additionalProperties", "items", "enum", "$ref", "$defs", "anyOf"}
"""The keywords of a strict schema that OpenAI's guide allows, as far as ours could have them."""


def asked(there: Listener, **settings: Any) -> list[dict[str, Any]]:
    """The bodies of one request for each predictor of the method and of its judges."""
    teacher = open_teacher(TeacherConfig.model_validate({"api_base": there.base_url, "retries": 0, **settings}))

    async def ask() -> None:
        async with teacher.running() as lm:
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
    with listening(lambda _: (400, {"error": {"message": "no", "type": "invalid_request_error"}})) as there:
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
