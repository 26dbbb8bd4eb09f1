"""A teacher's language model asked in both ways: directly, and through DSPy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dspy
from dspy.lm15 import Request, Response
from dspy.utils.callback import BaseCallback

from refed_dspy import TeacherConfig
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import about
from refed_dspy.programs.fast_path import DirectEngines, Engine
from refed_dspy.programs.question import current_repetition
from refed_dspy.teachers.engine import TeacherEngine
from refed_dspy.teachers.route import resolve
from refed_dspy.teachers.teacher import Teacher, request_settings
from refed_dspy.teachers.vendored import request_to_dict
from tests.support.scripted_engine import Writer

UNWATCHED = {"disable_history": True, "trace": None, "max_trace_size": 0, "track_usage": False}
"""As a run sets it."""
WATCHED = UNWATCHED | {"callbacks": [BaseCallback()]}
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


class EngineLM(dspy.LM):  # type: ignore[misc]
    """A `dspy.LM` on an engine of a teacher, which may also be asked without it."""

    @property
    def direct_engines(self) -> Any:
        return DirectEngines(self._async_engine_spec.engine, _Waiting(self._async_engine_spec.engine))


class _Waiting:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def complete(self, request: Request) -> Response:
        return asyncio.run(self.engine.complete(request))


class _Shown:
    """An engine with what DSPy wants to know of it."""

    supports_response_schema, supports_function_calling = True, False
    supported_params = frozenset({"temperature", "max_tokens", "response_format"})

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: object) -> _Shown:
        return self

    async def complete(self, request: Request) -> Response:
        return await self.engine.complete(request)


class _Blocking(_Shown):
    def complete(self, request: Request) -> Response:
        return asyncio.run(self.engine.complete(request))


def lm_on(config: TeacherConfig, engine: Engine, kind: type[EngineLM] = EngineLM) -> EngineLM:
    """A language model of this `kind` with the settings of `config`, on this engine."""
    shown = {"engine": _Blocking(engine), "async_engine": _Shown(engine)}
    return kind(str(config.model), **request_settings(config), cache=False, num_retries=0, **shown)


@asynccontextmanager
async def running_lm(teacher: Teacher) -> AsyncIterator[EngineLM]:
    """A language model on the engine of `teacher`, inside the block."""
    assert teacher.config is not None
    async with teacher.running() as engine:
        yield lm_on(teacher.config, engine)


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
