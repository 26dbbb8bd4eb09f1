"""Connections that are watched: the limits learn from the headers of every answer, and a web page is told apart."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from dspy.lm15 import TransportError

from refed_dspy.teachers.limits import Limits, sending


class WebPage(TransportError):
    """An HTML page came back instead of JSON: from a proxy, or a wrong address."""


class Watched:
    """One of lm15's asynchronous transports, with `limits` told of each answer's headers."""

    def __init__(self, transport: Any, limits: Limits) -> None:
        self._transport, self._limits = transport, limits

    def stream(self, request: Any) -> _Exchange:
        return _Exchange(self._transport.stream(request), self._limits)


class _Exchange:
    """One request and its answer, as an asynchronous context manager."""

    __slots__ = ("_inner", "_limits")

    def __init__(self, inner: Any, limits: Limits) -> None:
        self._inner, self._limits = inner, limits

    async def __aenter__(self) -> Any:
        response = await self._inner.__aenter__()
        if (turn := sending.get()) is not None:
            turn.answered = True
        limits: dict[str, str] = {}
        is_page = False
        for name, value in response.headers:
            name = name.lower()
            if "ratelimit" in name:
                limits[name] = value
            elif name == "content-type":
                is_page = value.lower().startswith("text/html")
        if limits:
            self._limits.learn(limits)
        # A gateway's page about too many requests, or about its own trouble, means what its status says.
        if is_page and response.status != 429 and response.status < 500:
            await self._inner.__aexit__(None, None, None)
            raise WebPage(f"answered HTTP {response.status} with a web page, not with JSON")
        return response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        return await self._inner.__aexit__(kind, error, trace)
