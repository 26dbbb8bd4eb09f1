"""A teacher's language model asked in both ways: directly, and through DSPy."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import dspy
from dspy._vendor.lm15.serde import request_to_dict
from dspy.lm15 import Request, Response

from refed_dspy import TeacherConfig
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import about
from refed_dspy.programs.question import current_repetition
from refed_dspy.teachers.blocking import BlockingTeacherEngine
from refed_dspy.teachers.engine import TeacherEngine
from refed_dspy.teachers.language_model import TeacherLM
from refed_dspy.teachers.route import resolve
from tests.support.scripted_engine import Writer

UNWATCHED = {"disable_history": True, "trace": None, "max_trace_size": 0, "track_usage": False}
"""As a run sets it."""
WATCHED = UNWATCHED | {"disable_history": False}
TEACHERS: dict[str, dict[str, Any]] = {
    "external": {"model": "sim/sim-model", "api_base": "http://127.0.0.1:9/v1", "temperature": 0.3, "max_tokens": 777},
    "params": {"model": "sim/sim-model", "api_base": "http://127.0.0.1:9/v1", "params": {"top_p": 0.5}},
    "anthropic": {"model": "anthropic/sim-model", "api_base": "http://127.0.0.1:9/v1"},
    "azure": {"model": "azure/sim-model", "api_base": "http://127.0.0.1:9"},
    "gpt-4o-mini": {"model": "openai/gpt-4o-mini"},
    "gpt-5-mini": {"model": "openai/gpt-5-mini", "max_tokens": 16_000},
}


class Recording(TeacherEngine):
    """A teacher's engine that keeps each request, as it comes and as it would go out, and lets a Writer answer."""

    def __init__(self, config: TeacherConfig, *queue: Any) -> None:
        super().__init__(config, resolve(config), None)
        self.writer = Writer(*queue)
        self.came: list[Request] = []
        self.sent: list[Request] = []
        self.repetitions: list[int] = []

    async def complete(self, request: Request) -> Response:
        self.came.append(request)
        self.repetitions.append(current_repetition())
        self.sent.append(self.outgoing(request)[0])
        return self.writer.answer(request)


def lm_on(config: TeacherConfig, engine: TeacherEngine) -> TeacherLM:
    """What `open_teacher` makes of `config`, on another engine."""
    return TeacherLM(
        str(config.model),
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        cache=False,
        num_retries=0,
        engine=BlockingTeacherEngine(engine),
        async_engine=engine,
    )


def inputs_for(signature: Any, number: int = 1) -> dict[str, Any]:
    """A value for each input: with quotes, tags, line breaks and letters from elsewhere."""
    history = dspy.History(messages=[{"question": "Once?", "answer": "Once."}])
    texts = {
        dspy.History: history,
        str: f'«{number}» "ä" \n\n</x> 日本 {{a}}',
        int: 3,
        list[str]: ["one", "two\nlines"],
    }
    return {name: texts[field.annotation] for name, field in signature.input_fields.items()}


async def asked(lm: Any, predictor: Any, settings: dict[str, Any], **more: Any) -> tuple[bool, Any]:
    """Whether `lm` was gone past to its engine, and the typed outputs."""
    through_lm: list[Any] = []
    acall = lm.acall

    async def noted(*args: Any, **kwargs: Any) -> Any:
        through_lm.append(kwargs)
        return await acall(*args, **kwargs)

    lm.acall = noted
    signature = next(inner for _, inner in predictor.named_predictors()).signature
    with dspy.context(**{"lm": lm, "adapter": SchemaAdapter(), **settings, **more}), about("stage", "item"):
        answer = await predictor.acall(**inputs_for(signature))
    return not through_lm, answer


def ask(lm: Any, predictor: Any, settings: dict[str, Any], **more: Any) -> tuple[bool, Any]:
    """`asked`, for callers without an event loop."""
    return asyncio.run(asked(lm, predictor, settings, **more))


def as_json(request: Request) -> str:
    return json.dumps(request_to_dict(request), sort_keys=True)
