"""The direct way from an adapter to a teacher's engine, taken where nothing observes the layers in between.

`dspy.LM` has a cache, keeps usage, and calls callbacks. In a run all of them are off, and passing through them costs
more than everything else this package does for a call (docs/log.md). The request, its result and its entry in DSPy's
history are the same either way. If any of them is on, the usual way is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol
from uuid import uuid4

import dspy
from dspy.clients.errors import wrap_error
from dspy.lm15 import Config, LM15Error, Message, Request, Response

from refed_dspy.programs.question import repeated, rollout

_SENT = frozenset({"temperature", "max_tokens", "max_completion_tokens", "rollout_id"})
"""The settings of a language model that `lm_request` knows."""


class Engine(Protocol):
    """What sends a request to a model."""

    async def complete(self, request: Request) -> Response: ...


def direct_engine(lm: Any, lm_kwargs: Mapping[str, Any]) -> Engine | None:
    """The engine of `lm` if it may be asked directly in this context; else None. `lm_kwargs`: the call's settings."""
    engine: Engine | None = getattr(lm, "direct_engine", None)
    if engine is None or lm.callbacks or lm.cache or lm_kwargs.keys() - {"rollout_id"} or lm.kwargs.keys() - _SENT:
        return None
    settings = dspy.settings
    if settings.callbacks or settings.usage_tracker or settings.send_stream or settings.track_usage:
        return None
    return engine


async def ask_directly(
    engine: Engine, lm: Any, lm_kwargs: Mapping[str, Any], messages: list[dict[str, Any]], typed_format: dict[str, Any]
) -> str:
    """The text of the answer. Raises what `lm.acall` raises."""
    try:
        with repeated(rollout(lm_kwargs, lm.kwargs)):
            response = await engine.complete(lm_request(lm, messages, typed_format))
    except LM15Error as error:
        raise wrap_error(error, model=lm.model) from error
    text = response.text or ""
    if not dspy.settings.disable_history:
        lm.update_history(_entry(lm, lm_kwargs, messages, response, text))
    return text


def _entry(
    lm: Any, lm_kwargs: Mapping[str, Any], messages: list[dict[str, Any]], response: Response, text: str
) -> dict[str, Any]:
    """A call in the form of DSPy's history."""
    return {
        "prompt": None,
        "messages": messages,
        "kwargs": {**lm.kwargs, **lm_kwargs},
        "response": response,
        "outputs": [text],
        "usage": {},
        "cost": None,
        "timestamp": datetime.now().isoformat(),
        "uuid": str(uuid4()),
        "model": lm.model,
        "response_model": response.model,
        "model_type": lm.model_type,
    }


def lm_request(lm: Any, messages: list[dict[str, Any]], response_format: dict[str, Any]) -> Request:
    """The request that `lm` would send for `messages`: an optional system message, then user and assistant in turn."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    dialogue = messages[1:] if system is not None else messages
    make = {"user": Message.user, "assistant": Message.assistant}
    return Request(
        model=lm.model,
        system=system,
        messages=tuple(make[message["role"]](message["content"]) for message in dialogue),
        config=_config(ByIdentity(response_format), lm.kwargs.get("temperature"), max_tokens_of(lm)),
    )


def max_tokens_of(lm: Any) -> int | None:
    """The bound on an answer that `lm` sets; DSPy keeps that of a reasoning model under another name."""
    max_tokens: int | None = lm.kwargs.get("max_tokens") or lm.kwargs.get("max_completion_tokens")
    return max_tokens


@dataclass(frozen=True, eq=False)
class ByIdentity:
    """A value that is equal only to itself, so that it can be a cache's key though it is not hashable."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@lru_cache(maxsize=512)
def _config(response_format: ByIdentity, temperature: float | None, max_tokens: int | None) -> Config:
    """The same object for every call of a signature to a teacher: lm15 walks the whole schema whenever it makes one."""
    return Config(temperature=temperature, max_tokens=max_tokens, response_format=response_format.value)
