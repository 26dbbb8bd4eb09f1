"""The language models that DSPy works with during a compile: each sends its requests through the gateway."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, TypeAlias

import dspy
from dspy.lm15 import Request, Response

from refed_dspy.optimizers.models import CompileModel

Submit: TypeAlias = Callable[[CompileModel, Request, int], "Future[Response]"]
"""`Gateway.submit`: model, request and repetition number, from any thread."""
FIRST_OF_SEVERAL = 1_000_000
"""Where the repetition numbers of a call for several answers begin: no `rollout_id` gets that high."""
_answer_numbers: ContextVar[Iterator[int] | None] = ContextVar("refed_several", default=None)
"""Numbers the answers of a call that wants several."""


class _Engine:
    """An engine for DSPy: one for each model and repetition number."""

    supports_function_calling = False

    def __init__(self, submit: Submit, model: CompileModel, repetition: int = 0) -> None:
        self.submit, self.model, self.repetition = submit, model, repetition
        engine = model.lm.direct_engine if model.teacher.reports_calls else model.lm
        self.supports_response_schema = bool(engine.supports_response_schema)
        self.supported_params = frozenset(engine.supported_params)

    def __deepcopy__(self, memo: object) -> _Engine:
        return self  # optimizers copy programs, and with them their language models

    def _submitted(self, request: Request) -> Future[Response]:
        counter = _answer_numbers.get()
        number = 0 if counter is None else next(counter)
        return self.submit(self.model, request, self.repetition + number * FIRST_OF_SEVERAL)


class SyncEngine(_Engine):
    def complete(self, request: Request) -> Response:
        """The answer, recorded or paid for. Raises LMError."""
        return self._submitted(request).result()


class AsyncEngine(_Engine):
    async def complete(self, request: Request) -> Response:
        """The answer, recorded or paid for. Raises LMError."""
        return await asyncio.wrap_future(self._submitted(request))


class GatewayLM(dspy.LM):
    """A `dspy.LM` that asks for another answer to the same question if its `rollout_id` is another.

    The `rollout_id` may come with a copy or with a call. A call for `n` answers numbers them.
    """

    malformed_retries = 0
    """Further tries after an answer that does not fit (programs/asking.py), each with its own repetition number."""

    @property
    def direct_engine(self) -> AsyncEngine:
        """The engine itself, past DSPy's layers, for calls without traces or callbacks (programs/fast_path.py)."""
        engine: AsyncEngine = self._async_engine_spec
        return engine

    def copy(self, **kwargs: Any) -> GatewayLM:
        """As `dspy.LM.copy`."""
        engine = self.engine
        if "rollout_id" in kwargs and isinstance(engine, SyncEngine):
            repetition = int(kwargs["rollout_id"] or 0)
            kwargs["engine"] = SyncEngine(engine.submit, engine.model, repetition)
            kwargs["async_engine"] = AsyncEngine(engine.submit, engine.model, repetition)
        copied: GatewayLM = super().copy(**kwargs)
        return copied

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        lm = self._repeated(kwargs)
        token = _answer_numbers.set(itertools.count() if _wants_several(lm, kwargs) else None)
        try:
            return super(GatewayLM, lm).__call__(prompt, messages=messages, **kwargs)
        finally:
            _answer_numbers.reset(token)

    async def acall(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        """As `dspy.LM`."""
        lm = self._repeated(kwargs)
        token = _answer_numbers.set(itertools.count() if _wants_several(lm, kwargs) else None)
        try:
            return await super(GatewayLM, lm).acall(prompt, messages=messages, **kwargs)
        finally:
            _answer_numbers.reset(token)

    def _repeated(self, kwargs: dict[str, Any]) -> GatewayLM:
        """This model, or a copy for the `rollout_id` of a call."""
        rollout = kwargs.get("rollout_id")
        return self if rollout is None or rollout == self.engine.repetition else self.copy(rollout_id=rollout)


def _wants_several(lm: GatewayLM, kwargs: dict[str, Any]) -> bool:
    return int(kwargs.get("n") or lm.kwargs.get("n") or 1) > 1
