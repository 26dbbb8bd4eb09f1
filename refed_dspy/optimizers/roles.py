"""The models of a compile, and how each of them is asked."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from dspy.lm15 import Request, Response, Usage

from refed_dspy.books import UnitBooks
from refed_dspy.calls import Attempt, booked
from refed_dspy.journal import FINAL
from refed_dspy.records import Call
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.receipts import as_text


@dataclass
class Role:
    """One of the models of a compile: `teacher`, `judge` or `reflection`."""

    name: str
    teacher: Teacher
    lm: Any
    answered: bool = False
    in_a_row: int = 0


async def ask(role: Role, request: Request, unit: UnitBooks) -> Response:
    """The answer of a role's model, booked in `unit`. Raises what the model's engine raises."""
    if role.teacher.reports_calls:
        with booked(unit):
            response: Response = await role.lm.straight.complete(request)
        return response
    return await _ask_borrowed(role, request, unit)


async def _ask_borrowed(role: Role, request: Request, unit: UnitBooks) -> Response:
    """Ask a caller's own LM, whose attempts are not seen one by one."""
    teacher = role.teacher
    number = await unit.reserve(Attempt(teacher.model, teacher.endpoint, None))
    started, usage, outcome = time.monotonic(), Usage(), "error"
    try:
        said: Response = as_text(await role.lm.acall(request=request))
        usage, outcome = said.usage or usage, "ok"
        if said.finish_reason in {"length", "content_filter"}:
            outcome = "cut" if said.finish_reason == "length" else "refused"
            raise FINAL[outcome](f"{outcome}: {said.finish_reason}")
        return said
    finally:
        tokens = usage.input_tokens or None, None, usage.output_tokens or None
        seconds = round(time.monotonic() - started, 3)
        unit.report(Call(teacher.model, teacher.endpoint, outcome, seconds, *tokens, None, number))
