"""The engine of a predictor that is called without an event loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from dspy.lm15 import Request, Response, response_to_events

from refed_dspy.concurrency import run_blocking
from refed_dspy.teachers.balance import BalancedEngine
from refed_dspy.teachers.engine import TeacherEngine


class BlockingTeacherEngine:
    """The engine of a predictor that is called without an event loop, outside a run. Each call has its own loop."""

    supports_response_schema = TeacherEngine.supports_response_schema
    supports_function_calling = TeacherEngine.supports_function_calling
    supported_params = TeacherEngine.supported_params

    def __init__(self, engine: TeacherEngine | BalancedEngine) -> None:
        self.engine = engine

    def __deepcopy__(self, memo: object) -> Self:
        return self  # as the engine behind it

    def complete(self, request: Request) -> Response:
        """As `TeacherEngine.complete`."""
        return run_blocking(self._complete(request))

    def stream(self, request: Request) -> Iterator[Any]:
        """The whole answer at once, as the events that `dspy.streamify` waits for."""
        yield from response_to_events(self.complete(request))

    async def _complete(self, request: Request) -> Response:
        try:
            return await self.engine.complete(request)
        finally:
            await self.engine.aclose()
