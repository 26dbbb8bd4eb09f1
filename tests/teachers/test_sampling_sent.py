"""Temperature, `top_p` and the length of an answer as they are sent."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import dspy
import pytest

from refed_dspy import TeacherConfig
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.records import Note
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.judge import judge_for
from refed_dspy.teachers.route import resolve
from tests.support.recording_endpoint import Listener, anthropic_answer, listening, openai_answer
from tests.support.two_ways import running_lm

OPENAI, ANTHROPIC = openai_answer('{"answer": "a"}'), anthropic_answer('{"answer": "a"}')


def sent(teacher: Teacher, there: Listener, **own: Any) -> dict[str, Any]:
    """The body of one request by a program that sets `own` in its call."""

    async def ask() -> None:
        async with running_lm(teacher) as lm:
            with dspy.context(lm=lm, adapter=SchemaAdapter()):
                await dspy.Predict("question -> answer").acall(question="q", config=own)

    asyncio.run(ask())
    return there.bodies[-1]


def config(there: Listener, model: str, **more: Any) -> TeacherConfig:
    return TeacherConfig.model_validate({"model": model, "api_base": there.base_url, "max_tokens": 16_000, **more})


@pytest.mark.parametrize(
    ("model", "params", "temperature"),
    [
        ("openai/gpt-4o-mini", {}, 0.0),
        ("openai/gpt-5-mini", {}, None),
        ("openai/o3", {}, None),
        ("anthropic/claude-opus-4-8", {}, None),
        ("anthropic/claude-sonnet-4-5", {}, 0.0),
        ("anthropic/claude-sonnet-4-5", {"top_p": 0.5}, None),
        ("anthropic/claude-3-opus", {"top_p": 0.5}, 0.0),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_judge_is_asked_at_temperature_0_where_its_model_takes_that(
    model: str, params: dict[str, Any], temperature: float | None, named: bool
) -> None:
    with listening(lambda _: (200, ANTHROPIC if model.startswith("anthropic") else OPENAI)) as there:
        teacher = open_teacher(config(there, model, params=params))
        body = sent(judge_for(teacher, config(there, model, params=params) if named else None), there)
    assert body.get("temperature") == temperature and body.get("top_p") == params.get("top_p")


@pytest.mark.parametrize("model", ["anthropic/claude-3-opus", "sim/any"])
def test_both_are_sent_where_a_model_may_take_both(model: str) -> None:
    with listening(lambda _: (200, ANTHROPIC if model.startswith("anthropic") else OPENAI)) as there:
        body = sent(open_teacher(config(there, model, temperature=0.7, params={"top_p": 0.9})), there)
    assert (body["temperature"], body["top_p"]) == (0.7, 0.9)


def test_a_temperature_that_a_program_asks_for_is_not_cut_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    with listening(lambda _: (200, ANTHROPIC)) as there, caplog.at_level(logging.WARNING):
        body = sent(open_teacher(config(there, "anthropic/claude-3-opus")), there, temperature=1.4)
    assert body["temperature"] == 1.0
    assert "1.4" in caplog.text


DATED = {"api_version": "2024-10-21", "api_key_env": "ANY_KEY", "max_tokens": 9_000}


@pytest.mark.parametrize(
    ("model", "given", "field", "tokens"),
    [
        ("openai/gpt-5-mini", {}, "max_completion_tokens", 16_000),
        ("openai/o4-mini", {"max_tokens": 2_000}, "max_completion_tokens", 2_000),
        ("openai/gpt-4o-mini", {}, "max_tokens", 4_096),
        ("gateway/deepseek-r1", {}, "max_tokens", 16_000),
        ("vllm/Qwen3-8B", {"max_tokens": 900}, "max_tokens", 900),
        ("any/model", {"reasoning": "low"}, "max_tokens", 16_000),
        ("azure/gpt-4o", {"max_tokens": 9_000}, "max_completion_tokens", 9_000),
        ("anthropic/claude", {"max_tokens": 9_000}, "max_tokens", 9_000),
        ("azure/my-reasoner-gpt-5", DATED, "max_completion_tokens", 9_000),
        ("azure/prod_o3-mini", DATED, "max_completion_tokens", 9_000),
        ("azure/gpt-4o", DATED, "max_tokens", 9_000),
        ("azure/turbo1", DATED, "max_tokens", 9_000),
    ],
)
def test_an_answer_gets_room_and_is_bounded_by_the_field_that_its_model_takes(
    model: str, given: dict[str, Any], field: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Azure's dated API knows the old field only, but for reasoning models, which take the new one only."""
    monkeypatch.setenv("ANY_KEY", "sk-any-0123456789")
    with listening(lambda _: (200, ANTHROPIC if model.startswith("anthropic") else OPENAI)) as there:
        address = there.root if model.startswith("azure") else there.base_url
        body = sent(open_teacher(TeacherConfig.model_validate({"model": model, "api_base": address, **given})), there)
    assert {name: count for name, count in body.items() if name.startswith("max_")} == {field: tokens}
    assert body.get("reasoning_effort") == given.get("reasoning")


@pytest.mark.parametrize(
    ("asked", "sent_schema"), [(None, "bounded"), ("bounded", "bounded"), ("strict", "strict"), ("none", None)]
)
def test_the_schema_that_is_asked_for_is_sent(asked: Any, sent_schema: str | None) -> None:
    class Short(dspy.Signature):  # type: ignore[misc]
        question: str = dspy.InputField()
        answer: Note = dspy.OutputField()

    async def ask(teacher: Teacher) -> None:
        async with running_lm(teacher) as lm:
            with dspy.context(lm=lm, adapter=SchemaAdapter()):
                await dspy.Predict(Short).acall(question="q")

    with listening(lambda _: (200, OPENAI)) as there:
        asyncio.run(ask(open_teacher(config(there, "sim/any", answer_schema=asked))))
    form = json.dumps(there.bodies[-1].get("response_format"))
    assert (form == "null") == (sent_schema is None) and ("maxLength" in form) == (sent_schema == "bounded")


@pytest.mark.parametrize(
    ("host", "schema"),
    [
        ("https://eu.api.openai.com/v1", "strict"),
        ("https://api.openai.com/v1", "strict"),
        ("https://x.openai.azure.com/openai/v1", "strict"),
        ("https://gateway.example/v1", "bounded"),
        ("https://api.openai.com.example/v1", "bounded"),
    ],
)
def test_openai_s_own_hosts_get_schemas_without_bounds(host: str, schema: str) -> None:
    route = resolve(TeacherConfig(model="any/gpt-4o-mini", api_base=host))
    assert route.schema == schema
