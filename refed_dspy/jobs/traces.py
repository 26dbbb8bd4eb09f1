"""Traces in MLflow, where `mlflow.dspy.autolog()` is on: of a sample of the rows, and of each row that failed.

MLflow's own callback traces each call as it begins, which costs several times as much as the call itself, and what its
queue cannot hold is lost. Here that callback is left out. What a row asks is noted, and told to MLflow once the row
is over, if it is one of those. MLflow is imported by then: by whoever turned autolog on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import dspy
from dspy.lm15 import Request, Response

from refed_dspy.errors import CodeFailed, RowError, one_line
from refed_dspy.ledger.recorder import CallRecorder, current_recorder
from refed_dspy.programs.fast_path import Engine
from refed_dspy.teachers.foreign import text_of

log = logging.getLogger("refed_dspy.tracking")


def callbacks_but_mlflows() -> list[Any]:
    """DSPy's callbacks in this context without the one that traces each call."""
    return [each for each in dspy.settings.callbacks or () if not _is_mlflows(each)]


def _is_mlflows(callback: object) -> bool:
    return type(callback).__module__.startswith("mlflow.")


@dataclass
class _Call:
    """A request of a row and what became of it. Times are nanoseconds since the epoch."""

    stage: str
    item: str
    model: str
    request: Request
    began: int
    outcome: Response | Exception
    ended: int = field(default_factory=time.time_ns)


_calls: ContextVar[list[_Call] | None] = ContextVar("refed_traced", default=None)
"""The calls of the row that this context works on; None where none is noted."""


class TracedEngine:
    """An engine whose calls are noted for the row that makes them."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    async def complete(self, request: Request) -> Response:
        """As the engine's own."""
        calls, recorder, began = _calls.get(), current_recorder.get(), time.time_ns()
        if calls is None or not isinstance(recorder, CallRecorder):
            return await self._engine.complete(request)
        key = recorder.key
        try:
            response = await self._engine.complete(request)
        except Exception as error:
            calls.append(_Call(key.stage, key.item, self._model, request, began, error))
            raise
        calls.append(_Call(key.stage, key.item, self._model, request, began, response))
        return response


class Traces:
    """The traces of one start."""

    def __init__(self, share: float) -> None:
        """`share`: of the rows of each kind, the first one among them; those that fail are traced anyhow."""
        self._on = any(map(_is_mlflows, dspy.settings.callbacks or ()))
        self._share, self._seen = share, Counter[str]()

    def engine(self, engine: Engine, model: str) -> Engine:
        """`engine`, its calls noted where that is wanted."""
        return TracedEngine(engine, model) if self._on else engine

    @contextmanager
    def row(self, kind: str, item: str = "") -> Iterator[None]:
        """The block works on a row of this `kind`: trace it, if it is one of those. What earlier starts paid for is not
        traced again."""
        if not self._on:
            yield
            return
        began, calls = time.time_ns(), list[_Call]()
        token = _calls.set(calls)
        try:
            yield
        except RowError as error:
            if calls or isinstance(error, CodeFailed):
                self._trace(kind, item or error.item, began, calls, error)
            raise
        else:
            if calls and self._is_drawn(kind):
                self._trace(kind, item or calls[-1].item, began, calls)
        finally:
            _calls.reset(token)

    def _is_drawn(self, kind: str) -> bool:
        """Whether the next row of this kind is one of the share."""
        before, self._seen[kind] = self._seen[kind], self._seen[kind] + 1
        return ceil(self._seen[kind] * self._share) > ceil(before * self._share)

    def _trace(self, kind: str, item: str, began: int, calls: list[_Call], failed: RowError | None = None) -> None:
        if not self._on:
            return
        try:
            _tell(kind, item, began, calls, failed)
        except Exception as error:  # noqa: BLE001 — MLflow's own, or its store's: no row may fail by them
            self._on = False
            log.warning("MLflow does not take traces (%s); the work continues without", one_line(error, 200))


def _tell(kind: str, item: str, began: int, calls: list[_Call], failed: RowError | None) -> None:
    """Have MLflow make one trace of a row: a span for each call, with its stage, item, texts and tokens."""
    import mlflow
    from mlflow.utils.autologging_utils import get_autologging_config

    if not get_autologging_config("dspy", "log_traces", True):
        return
    about = {"item": item, "stages": ", ".join(dict.fromkeys(call.stage for call in calls))}
    row = mlflow.start_span_no_context(kind, "CHAIN", inputs={"item": item}, attributes=about, start_time_ns=began)
    for call in calls:
        _tell_call(mlflow, row, call)
    outputs = _outputs(failed or calls[-1].outcome)
    row.end(outputs=outputs, status="OK" if failed is None else "ERROR")


def _outputs(outcome: Response | Exception) -> dict[str, str]:
    """What a span shows. An endpoint may repeat the key that it was sent: a row's error and an answer's text are told
    without it, and of other errors the kind alone."""
    if isinstance(outcome, Response):
        return {"response": outcome.text or ""}
    return {"failed": str(outcome) if isinstance(outcome, RowError) else type(outcome).__name__}


def _tell_call(mlflow: Any, row: Any, call: _Call) -> None:
    from mlflow.tracing.constant import SpanAttributeKey, TokenUsageKey

    asked = [{"role": each.role, "content": text_of(each)} for each in call.request.messages]
    system = [{"role": "system", "content": call.request.system}] if isinstance(call.request.system, str) else []
    # Under MLflow's own name for a model it would look for its price, and import LiteLLM for that.
    about = {"stage": call.stage, "item": call.item, "model_name": call.model}
    span = mlflow.start_span_no_context(
        call.stage, "CHAT_MODEL", row, {"messages": [*system, *asked]}, about, start_time_ns=call.began
    )
    if isinstance(call.outcome, Response):
        used = call.outcome.usage
        tokens = (used.input_tokens or 0, used.output_tokens or 0)
        names = (TokenUsageKey.INPUT_TOKENS, TokenUsageKey.OUTPUT_TOKENS, TokenUsageKey.TOTAL_TOKENS)
        span.set_attribute(SpanAttributeKey.CHAT_USAGE, dict(zip(names, (*tokens, sum(tokens)), strict=True)))
    status = "OK" if isinstance(call.outcome, Response) else "ERROR"
    span.end(outputs=_outputs(call.outcome), status=status, end_time_ns=call.ended)
