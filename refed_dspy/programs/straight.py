"""The straight way from a prompt to a teacher's engine, where nobody watches the language model in between.

`dspy.LM` keeps history, usage, a cache and callbacks; in a run all of them are off, and passing through costs more
than everything else this package does for a call (docs/log.md). What is sent is the same either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import dspy
from dspy.lm15 import Config, Message, Request, Response


class Engine(Protocol):
    async def complete(self, request: Request) -> Response: ...


def unwatched_engine(lm: Any) -> Engine | None:
    """The engine of `lm`, if it offers a straight way and neither history, usage, callbacks nor a stream is on."""
    engine: Engine | None = getattr(lm, "straight", None)
    if engine is None or lm.callbacks or lm.cache:
        return None
    settings = dspy.settings
    watched = settings.callbacks or settings.usage_tracker or settings.send_stream or settings.track_usage
    return engine if settings.disable_history and not watched else None


def lm_request(lm: Any, messages: list[dict[str, Any]], response_format: dict[str, Any]) -> Request:
    """What `lm` would send for `messages`: an optional system message first, then user and assistant in turn."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = messages[1:] if system is not None else messages
    make = {"user": Message.user, "assistant": Message.assistant}
    config = _config(_Same(response_format), lm.kwargs.get("temperature"), _most_tokens(lm))
    return Request(
        model=lm.model, system=system, messages=tuple(make[m["role"]](m["content"]) for m in turns), config=config
    )


def _most_tokens(lm: Any) -> int | None:
    most: int | None = lm.kwargs.get("max_tokens") or lm.kwargs.get("max_completion_tokens")
    return most


@dataclass(frozen=True, eq=False)
class _Same:
    """A value that is equal to itself alone, so that it can be a cache's key whatever it holds."""

    value: dict[str, Any]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


@lru_cache(maxsize=512)
def _config(response_format: _Same, temperature: float | None, max_tokens: int | None) -> Config:
    """One object for each signature and teacher: lm15 looks through the whole schema whenever one is made."""
    return Config(temperature=temperature, max_tokens=max_tokens, response_format=response_format.value)
