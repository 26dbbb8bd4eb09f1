"""What DSPy holds of a gateway: a language model for each role, whose every request goes through it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, Protocol

import dspy
from dspy.lm15 import Request, Response


class Asked(Protocol):
    """Whoever takes requests from any thread: a gateway."""

    def submit(self, role: Any, request: Request, repetition: int) -> Future[Response]: ...


class _Doors:
    """What DSPy takes for an engine: one for each role and repetition."""

    supports_function_calling = False

    def __init__(self, gateway: Asked, role: Any, repetition: int = 0) -> None:
        self.gateway, self.role, self.repetition = gateway, role, repetition
        engine = role.lm.straight if role.teacher.reports_calls else role.lm
        self.supports_response_schema = bool(engine.supports_response_schema)
        self.supported_params = frozenset(engine.supported_params)

    def __deepcopy__(self, memo: object) -> _Doors:
        return self  # optimizers copy programs, and with them their language models


class SyncDoor(_Doors):
    def complete(self, request: Request) -> Response:
        """The answer, from the journal or paid for. Raises LMError."""
        return self.gateway.submit(self.role, request, self.repetition).result()


class AsyncDoor(_Doors):
    async def complete(self, request: Request) -> Response:
        """The answer, from the journal or paid for. Raises LMError."""
        return await asyncio.wrap_future(self.gateway.submit(self.role, request, self.repetition))


class GatewayLM(dspy.LM):
    """A `dspy.LM` whose copies with a `rollout_id` ask for another answer to the same question."""

    @property
    def straight(self) -> AsyncDoor:
        """The way without DSPy's layers, for calls that nobody watches (programs/straight.py)."""
        door: AsyncDoor = self._async_engine_spec
        return door

    def copy(self, **kwargs: Any) -> GatewayLM:
        """As `dspy.LM.copy`."""
        own = self.engine
        if "rollout_id" in kwargs and isinstance(own, SyncDoor):
            repetition = int(kwargs["rollout_id"] or 0)
            kwargs["engine"] = SyncDoor(own.gateway, own.role, repetition)
            kwargs["async_engine"] = AsyncDoor(own.gateway, own.role, repetition)
        copied: GatewayLM = super().copy(**kwargs)
        return copied
