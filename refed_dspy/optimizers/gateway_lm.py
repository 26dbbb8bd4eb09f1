"""What DSPy holds of a gateway: a language model for each role, whose every request goes through it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Protocol

import dspy
from dspy.lm15 import Request, Response

MANY = 1_000_000
"""Where the repetitions of one call that wants several answers begin: no rollout is counted so far."""
_several: ContextVar[Iterator[int] | None] = ContextVar("refed_several", default=None)
"""Counts the answers of a call that wants several."""


class Asked(Protocol):
    """Whoever takes requests from any thread: a gateway."""

    def submit(self, role: Any, request: Request, repetition: int) -> Future[Response]: ...


class _Engine:
    """What DSPy takes for an engine: one for each role and repetition."""

    supports_function_calling = False

    def __init__(self, gateway: Asked, role: Any, repetition: int = 0) -> None:
        self.gateway, self.role, self.repetition = gateway, role, repetition
        engine = role.lm.straight if role.teacher.reports_calls else role.lm
        self.supports_response_schema = bool(engine.supports_response_schema)
        self.supported_params = frozenset(engine.supported_params)

    def __deepcopy__(self, memo: object) -> _Engine:
        return self  # optimizers copy programs, and with them their language models

    def _submitted(self, request: Request) -> Future[Response]:
        counter = _several.get()
        nth = 0 if counter is None else next(counter)
        return self.gateway.submit(self.role, request, self.repetition + nth * MANY)


class SyncEngine(_Engine):
    def complete(self, request: Request) -> Response:
        """The answer, from the journal or paid for. Raises LMError."""
        return self._submitted(request).result()


class AsyncEngine(_Engine):
    async def complete(self, request: Request) -> Response:
        """The answer, from the journal or paid for. Raises LMError."""
        return await asyncio.wrap_future(self._submitted(request))


class GatewayLM(dspy.LM):
    """A `dspy.LM` that asks for another answer to the same question where its `rollout_id` is another.

    It may be given with a copy or with a call. A call for `n` answers counts them.
    """

    malformed_retries = 0
    """Further tries after an answer that does not fit (programs/asking.py), each a repetition of its own."""

    @property
    def straight(self) -> AsyncEngine:
        """The way without DSPy's layers, for calls that nobody watches (programs/straight.py)."""
        door: AsyncEngine = self._async_engine_spec
        return door

    def copy(self, **kwargs: Any) -> GatewayLM:
        """As `dspy.LM.copy`."""
        own = self.engine
        if "rollout_id" in kwargs and isinstance(own, SyncEngine):
            repetition = int(kwargs["rollout_id"] or 0)
            kwargs["engine"] = SyncEngine(own.gateway, own.role, repetition)
            kwargs["async_engine"] = AsyncEngine(own.gateway, own.role, repetition)
        copied: GatewayLM = super().copy(**kwargs)
        return copied

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        asked = self._repeated(kwargs)
        token = _several.set(itertools.count() if _wants_several(asked, kwargs) else None)
        try:
            return super(GatewayLM, asked).__call__(prompt, messages=messages, **kwargs)
        finally:
            _several.reset(token)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        asked = self._repeated(kwargs)
        token = _several.set(itertools.count() if _wants_several(asked, kwargs) else None)
        try:
            return await super(GatewayLM, asked).acall(prompt, messages=messages, **kwargs)
        finally:
            _several.reset(token)

    def _repeated(self, kwargs: dict[str, Any]) -> GatewayLM:
        """This model, or a copy for the repetition that a call is for."""
        rollout = kwargs.get("rollout_id")
        return self if rollout is None or rollout == self.engine.repetition else self.copy(rollout_id=rollout)


def _wants_several(lm: GatewayLM, kwargs: dict[str, Any]) -> bool:
    return int(kwargs.get("n") or lm.kwargs.get("n") or 1) > 1
