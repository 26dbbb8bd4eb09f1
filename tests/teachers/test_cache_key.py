"""The provider's cache key: who is sent one, and that a reference's calls share it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from dspy.lm15 import Config, Message, Request

from refed_dspy import TeacherConfig
from refed_dspy.programs.adapter import SchemaAdapter, rendering
from refed_dspy.signatures import ResponseGeneration
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.requests import Outgoing
from refed_dspy.teachers.route import resolve
from tests.support.asking import ask
from tests.support.recording_endpoint import Listener, listening, openai_answer
from tests.support.two_ways import running_lm


@pytest.fixture
def recorder() -> Iterator[Listener]:
    with listening(lambda headers: (200, openai_answer('{"response": "So."}'))) as endpoint:
        yield endpoint


def answered(recorder: Listener, questions: list[dict[str, Any]], **settings: Any) -> list[Any]:
    """The cache keys that answering these sends."""
    teacher = open_teacher(
        TeacherConfig.model_validate({"retries": 0, "price": {"prompt": 1, "completion": 1}} | settings)
    )

    async def all_of_them() -> None:
        async with running_lm(teacher) as lm:
            with dspy.context(lm=lm, adapter=SchemaAdapter(), disable_history=True, trace=None):
                for inputs in questions:
                    await ask("stage", "item", dspy.Predict(ResponseGeneration), **inputs)

    recorder.bodies.clear()
    asyncio.run(all_of_them())
    return [body.get("prompt_cache_key") for body in recorder.bodies]


QUESTIONS = [
    {"example_instruction": reference, "example_response": "R", "instruction": text}
    for reference in ("Plan a trip.", "Plan a meal.")
    for text in ("One", "Two")
]


def test_azure_is_sent_a_key_for_each_reference(recorder: Listener) -> None:
    first, second, third, fourth = answered(recorder, QUESTIONS, model="azure/m", api_base=recorder.root)
    assert first == second != third == fourth
    assert all(len(key) == 32 and int(key, 16) for key in (first, third)), "a digest, and nothing else"
    # The same reference under another prompt: another stage's requests go to another machine.
    other = dspy.Predict(ResponseGeneration.with_instructions("Answer in verse."))
    assert rendering(other.signature).system != rendering(ResponseGeneration).system
    assert answered(recorder, QUESTIONS[:1], model="azure/m", api_base=recorder.root) == [first]


def test_the_user_s_own_key_wins(recorder: Listener) -> None:
    settings = {"params": {"prompt_cache_key": "mine"}}
    assert answered(recorder, QUESTIONS[:2], model="azure/m", api_base=recorder.root, **settings) == ["mine", "mine"]
    other = {"params": {"top_p": 0.9}}
    keys = answered(recorder, QUESTIONS[:1], model="azure/m", api_base=recorder.root, **other)
    assert keys != [None] and recorder.bodies[0]["top_p"] == 0.9


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "openai/m"},
        {"model": "azure/m", "api_version": "2024-10-21"},
        {"model": "azure/m", "mode": "batch"},
    ],
    ids=["another endpoint", "a dated azure", "a batch"],
)
def test_who_may_not_know_a_cache_key_is_sent_none(settings: dict[str, Any]) -> None:

    config = TeacherConfig.model_validate({"api_base": "https://api.openai.com.example.org/v1", **settings})
    request = Request(
        model="m", system="S", messages=(Message.user("<a>\nx\n</>\n\nJSON:"),), config=Config(max_tokens=16)
    )
    sent, _ = Outgoing(config, resolve(config))(request)
    assert not sent.config.extensions
    config = TeacherConfig(model="openai/m", api_base="https://eu.api.openai.com/v1")
    sent, _ = Outgoing(config, resolve(config))(request)
    assert sent.config.extensions and request.config.extensions is None, "the request itself is left alone"
    freely = Request(model="m", messages=(Message.user("Hello"),), config=Config(max_tokens=16))
    assert not Outgoing(config, resolve(config))(freely)[0].config.extensions, "nobody knows what of it is stable"
