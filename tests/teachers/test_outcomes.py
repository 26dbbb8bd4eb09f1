"""How an attempt ended: what may pass, what is a limit, and what an answer's ending means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import (
    BillingError,
    DataPart,
    InvalidRequestError,
    LM15Error,
    Message,
    RateLimitError,
    ServerError,
    TextPart,
    TransportError,
)

import refed_dspy
from refed_dspy.errors import TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.teachers.outcomes import as_text, is_free, is_overload, is_rate_limit, is_transient, outcome_of
from tests.support.compiling import config
from tests.support.recording_endpoint import listening
from tests.support.scripted_engine import references, response


@pytest.mark.parametrize(
    ("error", "limit", "overload", "passes"),
    [
        (RateLimitError("slow down", status=429), True, False, True),
        (RateLimitError("slow down"), True, False, True),
        (ServerError("slow down", status=429), True, False, True),
        (BillingError("no money", status=429), False, False, False),
        (ServerError("busy", status=503), False, True, True),
        (ServerError("overloaded", status=529), False, True, True),
        (ServerError("broken", status=500), False, False, True),
        (TransportError("dropped"), False, False, True),
        (InvalidRequestError("what?", status=400), False, False, False),
        (TimeoutError("of something else"), False, False, False),
    ],
    ids=lambda value: repr(value) if isinstance(value, Exception) else "",
)
def test_an_error_is_a_limit_or_an_overload_or_passes_or_none_of_it(
    error: BaseException, limit: bool, overload: bool, passes: bool
) -> None:
    assert (is_rate_limit(error), is_overload(error), is_transient(error)) == (limit, overload, passes)
    assert isinstance(error, LM15Error) or not limit


def test_which_statuses_cost_nothing() -> None:
    assert [status for status in (None, 200, 299, 302, 400, 408, 429, 503, 599, 999) if not is_free(status)] == [
        None, 200, 299, 408,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "outcome"), [("stop", "ok"), ("length", "cut"), ("content_filter", "refused"), ("tool_call", "ok")]
)
def test_why_an_answer_ended_is_its_outcome(reason: Any, outcome: str) -> None:
    assert outcome_of(response("text", reason)) == outcome


@pytest.mark.parametrize("values", [[], [{"verdict": "first"}], [{"é": 1}, ["second"]]])
def test_parsed_values_become_text_beside_other_text(values: list[Any]) -> None:
    given = response("first")
    parts = (*given.message.parts, *(DataPart(value=value) for value in values))
    read = as_text(replace(given, message=Message(role="assistant", parts=parts)))
    texts = [part.text for part in read.message.parts if isinstance(part, TextPart)]
    assert texts == ["first", *(json.dumps(value, ensure_ascii=False) for value in values)]


@pytest.mark.parametrize("message", [["a", "b"], {"odd": "one"}, None])
def test_an_errors_message_that_is_no_text_is_an_error_like_any_other(message: Any, tmp_path: Path) -> None:
    endpoint: Any
    with listening(lambda _: (400, {"error": {"message": message}})) as endpoint, pytest.raises(TeacherRefused):
        refed_dspy.synthesize(None, references(2), size=2, teacher=config(endpoint, retries=0), run_dir=tmp_path)
    with Ledger.read(tmp_path) as ledger:
        outcomes = ledger.db.execute("SELECT DISTINCT outcome, cost FROM calls").fetchall()
    assert outcomes == [("http 400", 0)]
