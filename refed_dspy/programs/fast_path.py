"""The direct way from an adapter to a teacher's engine, taken where nothing observes the layers in between.

`dspy.LM` has a cache, keeps usage, and calls callbacks. In a run all of them are off, and passing through them costs
more than everything else this package does for a call (docs/log.md). The request, its result and its entry in DSPy's
history are the same either way. If any of them is on, the usual way is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, Protocol
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


class WaitingEngine(Protocol):
    """The same for callers without an event loop."""

    def complete(self, request: Request) -> Response: ...


class DirectEngines(NamedTuple):
    """The engines of a language model that may be asked directly."""

    awaited: Engine
    waiting: WaitingEngine


def direct_engines(lm: Any, lm_kwargs: Mapping[str, Any]) -> DirectEngines | None:
    """The engines of `lm` if they may be asked directly in this context, else None. `lm_kwargs`: the call's own."""
    engines: DirectEngines | None = getattr(lm, "direct_engines", None)
    if engines is None or lm.callbacks or lm.cache or lm_kwargs.keys() - {"rollout_id"} or lm.kwargs.keys() - _SENT:
        return None
    settings = dspy.settings
    if settings.callbacks or settings.usage_tracker or settings.send_stream or settings.track_usage:
        return None
    return engines


@dataclass(frozen=True)
class DirectCall:
    """A call that goes past the layers: `messages` for `lm`, whose answer has the form `typed_format`."""

    lm: Any
    lm_kwargs: Mapping[str, Any]
    messages: list[dict[str, Any]]
    typed_format: dict[str, Any]

    async def ask(self, engine: Engine) -> str:
        """The text of the answer. Raises what `lm.acall` raises."""
        with self._asking():
            return self._noted(await engine.complete(lm_request(self.lm, self.messages, self.typed_format)))

    def wait(self, engine: WaitingEngine) -> str:
        """The same, as `lm` returns it."""
        with self._asking():
            return self._noted(engine.complete(lm_request(self.lm, self.messages, self.typed_format)))

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            with repeated(rollout(self.lm_kwargs, self.lm.kwargs)):
                yield
        except LM15Error as error:
            raise wrap_error(error, model=self.lm.model) from error

    def _noted(self, response: Response) -> str:
        text = response.text or ""
        if not dspy.settings.disable_history:
            self.lm.update_history(_entry(self.lm, self.lm_kwargs, self.messages, response, text))
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
