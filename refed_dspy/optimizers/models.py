"""The models that a compile asks: teacher, judge and reflection, and one request to one of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from dspy.lm15 import Request, Response, Usage

from refed_dspy.ledger.attempt import Attempt
from refed_dspy.ledger.recorder import CallRecorder, recording
from refed_dspy.optimizers.stored_responses import FINAL_ERRORS
from refed_dspy.records import Call
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.outcomes import as_text, reserved


@dataclass
class CompileModel:
    """The model of one role: `teacher`, `judge` or `reflection`."""

    role: str
    teacher: Teacher
    lm: Any
    answered: bool = False
    """Whether any request was answered so far."""
    unanswered_in_a_row: int = 0


async def ask(model: CompileModel, request: Request, calls: CallRecorder) -> Response:
    """The model's response; its attempts are recorded in `calls`. Raises what the model's engine raises."""
    if model.teacher.reports_calls:
        with recording(calls):
            response: Response = await model.lm.direct_engine.complete(request)
        return response
    return await _ask_foreign_lm(model, request, calls)


async def _ask_foreign_lm(model: CompileModel, request: Request, calls: CallRecorder) -> Response:
    """Ask a `dspy.LM` of the caller, which retries by itself: its attempts are recorded as one call."""
    teacher = model.teacher
    number = await reserved(calls, Attempt(teacher.model, teacher.endpoint, None))
    started, usage, outcome = time.monotonic(), Usage(), "error"
    try:
        response: Response = as_text(await model.lm.acall(request=request))
        usage, outcome = response.usage or usage, "ok"
        if response.finish_reason in {"length", "content_filter"}:
            outcome = "cut" if response.finish_reason == "length" else "refused"
            raise FINAL_ERRORS[outcome](f"{outcome}: {response.finish_reason}")
        return response
    finally:
        calls.report(
            Call(
                model=teacher.model,
                endpoint=teacher.endpoint,
                outcome=outcome,
                seconds=round(time.monotonic() - started, 3),
                prompt_tokens=usage.input_tokens or None,
                completion_tokens=usage.output_tokens or None,
                number=number,
            )
        )
