"""The direct way from a predictor to a teacher's engine, taken where nothing observes the layers in between.

`dspy.Predict` and `dspy.LM` keep traces, history, usage and a cache, and call callbacks. In a run all of them are off,
and passing through them costs more than everything else this package does for a call (docs/log.md). The request and its
result are the same either way. If any of them is on, the usual way is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import dspy
from dspy.clients.errors import wrap_error
from dspy.lm15 import Config, LM15Error, Message, Request, Response

from refed_dspy.programs.adapter import SchemaAdapter, rendering

_ADAPTER = SchemaAdapter()


class Engine(Protocol):
    """What sends a request to a model."""

    async def complete(self, request: Request) -> Response: ...


def direct_engine(predictor: dspy.Predict) -> Engine | None:
    """The engine of `predictor`'s language model in this context, if it may be asked directly; else None."""
    settings = dspy.settings
    lm = predictor.lm or settings.lm
    engine: Engine | None = getattr(lm, "direct_engine", None)
    plain = type(predictor) is dspy.Predict and type(settings.adapter or _ADAPTER) is SchemaAdapter
    if engine is None or not plain or predictor.config or predictor.callbacks or lm.callbacks or lm.cache:
        return None
    if settings.callbacks or settings.usage_tracker or settings.send_stream or settings.track_usage:
        return None
    traced = settings.trace is not None and settings.max_trace_size > 0
    return engine if settings.disable_history and not traced else None


async def predict_directly(predictor: dspy.Predict, engine: Engine, inputs: Mapping[str, Any]) -> dspy.Prediction:
    """The predictor's typed outputs. Raises what `predictor.acall` raises."""
    lm, signature = predictor.lm or dspy.settings.lm, predictor.signature
    messages = _ADAPTER.format(signature, predictor.demos, dict(inputs))
    request = lm_request(lm, messages, rendering(signature).typed_format)
    try:
        response = await engine.complete(request)
    except LM15Error as error:
        raise wrap_error(error, model=lm.model) from error
    return dspy.Prediction(**_ADAPTER.parse(signature, response.text or ""))


def lm_request(lm: Any, messages: list[dict[str, Any]], response_format: dict[str, Any]) -> Request:
    """The request that `lm` would send for `messages`: an optional system message, then user and assistant in turn."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    dialogue = messages[1:] if system is not None else messages
    make = {"user": Message.user, "assistant": Message.assistant}
    return Request(
        model=lm.model,
        system=system,
        messages=tuple(make[message["role"]](message["content"]) for message in dialogue),
        config=_config(_ByIdentity(response_format), lm.kwargs.get("temperature"), _max_tokens(lm)),
    )


def _max_tokens(lm: Any) -> int | None:
    max_tokens: int | None = lm.kwargs.get("max_tokens") or lm.kwargs.get("max_completion_tokens")
    return max_tokens


@dataclass(frozen=True, eq=False)
class _ByIdentity:
    """A value that is equal only to itself, so that it can be a cache's key though it is not hashable."""

    value: dict[str, Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@lru_cache(maxsize=512)
def _config(response_format: _ByIdentity, temperature: float | None, max_tokens: int | None) -> Config:
    """The same object for every call of a signature to a teacher: lm15 walks the whole schema whenever it makes one."""
    return Config(temperature=temperature, max_tokens=max_tokens, response_format=response_format.value)
