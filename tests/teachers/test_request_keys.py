"""When two requests are the same: then one answer serves both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from dspy.lm15 import Config, FunctionTool, ImagePart, Message, Request, TextPart

from refed_dspy.programs.question import Question
from refed_dspy.teachers.recorded import Asked, key_function

IDENTITY = {"model": "m", "temperature": 1.0, "max_tokens": 100, "params": {}}
OWN = {"temperature": 1.0, "max_tokens": 100}
FORMAT = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}}
REQUEST = Request(
    model="m", system="Be brief.", messages=(Message.user("Why?"), Message.assistant("So."), Message.user("And?"))
)
TOOL = FunctionTool(name="look", description="Looks.", parameters={"type": "object", "properties": {}})
IMAGE = ImagePart(data="aGk=", media_type="image/png")


def key(request: Request, identity: Any = IDENTITY, repetition: int = 0, stage: str = "s", item: str = "i") -> str:
    return key_function(identity, OWN)(Asked(request, Question(stage, item), repetition)).digest


def test_the_same_request_has_the_same_key_whoever_makes_it() -> None:
    same = Request(model="another name", system="Be brief.", messages=REQUEST.messages, config=Config())
    explicit = replace(REQUEST, config=Config(temperature=1.0, max_tokens=100))
    assert key(REQUEST) == key(same) == key(explicit) == key(REQUEST, stage="other", item="9")
    assert len(key(REQUEST)) == 16


OTHERS: dict[str, Request] = {
    "no system": replace(REQUEST, system=None),
    "a system in parts": replace(REQUEST, system=(TextPart(text="Be "), TextPart(text="brief."))),
    "other words": replace(REQUEST, messages=(*REQUEST.messages[:2], Message.user("And now?"))),
    "one message less": replace(REQUEST, messages=REQUEST.messages[2:]),
    "another role": replace(REQUEST, messages=(Message.user("Why?"), Message.user("So."), Message.user("And?"))),
    "words in another message": replace(
        REQUEST, messages=(Message.user("Why?S"), Message.assistant("o."), Message.user("And?"))
    ),
    "words in the system": replace(
        REQUEST, system="Be brief.Why?", messages=(Message.user("x"), *REQUEST.messages[1:])
    ),
    "two parts": replace(REQUEST, messages=(*REQUEST.messages[:2], Message.user([TextPart(text="And"), IMAGE]))),
    "an image": replace(REQUEST, messages=(*REQUEST.messages[:2], Message.user([IMAGE]))),
    "a tool": replace(REQUEST, tools=(TOOL,)),
    "another tool": replace(REQUEST, tools=(replace(TOOL, name="see"),)),
    "a temperature": replace(REQUEST, config=Config(temperature=0.2)),
    "a schema": replace(REQUEST, config=Config(response_format=FORMAT)),
    "another schema": replace(REQUEST, config=Config(response_format={**FORMAT, "schema": {"type": "array"}})),
    "a stop": replace(REQUEST, config=Config(stop=("\n",))),
}


def test_whatever_shapes_an_answer_makes_another_key() -> None:
    keys = {name: key(request) for name, request in OTHERS.items()}
    keys |= {"itself": key(REQUEST), "again": key(REQUEST, repetition=1)}
    keys |= {"another model": key(REQUEST, {**IDENTITY, "model": "n"})}
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize("text", ["\x00", "\ud800", "日本", "] ['user'] [1] x"])
def test_any_text_has_a_key(text: str) -> None:
    assert key(replace(REQUEST, messages=(Message.user(text),))) != key(REQUEST)
