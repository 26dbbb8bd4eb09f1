"""`dspy.streamify` over a program: what comes of each call arrives, and then the prediction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import dspy
import pytest
from dspy.clients.engines.streaming import EngineChunk
from dspy.lm15 import Request
from dspy.streaming import StatusMessage, StatusMessageProvider, StreamListener, StreamResponse

from refed_dspy.errors import TeacherError
from refed_dspy.programs import ReferenceLevelFeedback, SchemaAdapter
from tests.support.said import Said
from tests.support.scripted_engine import AsyncWriter, Writer, fake_lm

REFERENCE = {"instruction": "Explain tides.", "response": "The moon pulls."}
CALLS = 1 + 1 + 2 + 20 + 20


class Telling(StatusMessageProvider):  # type: ignore[misc]
    def lm_start_status_message(self, instance: Any, inputs: dict[str, Any]) -> str:
        return "asking"


class InPieces(Writer):
    """Streams its answers a few letters at a time."""

    @property
    def asynchronous(self) -> Any:
        return _PiecesEngine(self)


class _PiecesEngine(AsyncWriter):
    async def stream(self, request: Request) -> AsyncIterator[Any]:
        async for event in super().stream(request):
            if event.type != "delta":
                yield event
                continue
            for start in range(0, len(event.delta.text), 6):
                yield replace(event, delta=replace(event.delta, text=event.delta.text[start : start + 6]))


async def streamed(writer: Writer, **form: Any) -> list[Any]:
    with dspy.context(lm=fake_lm(writer)):
        return [value async for value in dspy.streamify(ReferenceLevelFeedback(), **form)(REFERENCE)]


@pytest.mark.parametrize("form", [{}, {"is_async_program": True}], ids=["default", "async"])
def test_a_program_streams(form: dict[str, Any]) -> None:
    writer = Writer()
    *chunks, made = asyncio.run(asyncio.wait_for(streamed(writer, **form), 60))
    assert len(made.samples) == 20 and len(writer.requests) == CALLS
    assert len(chunks) == 2 * CALLS and all(isinstance(chunk, EngineChunk) for chunk in chunks)


def test_status_messages_of_many_calls_at_once_arrive() -> None:
    """More of them than the stream holds, none of them sent on the event loop that reads it."""
    *told, made = asyncio.run(asyncio.wait_for(streamed(Writer(), status_message_provider=Telling()), 60))
    assert len(made.samples) == 20
    assert sum(isinstance(value, StatusMessage) for value in told) == CALLS


def test_a_listener_hears_a_stage_in_a_format_that_it_knows(said: Said) -> None:
    def heard(**settings: Any) -> str:
        listener = StreamListener("response_feedback", allow_reuse=True)
        with dspy.context(**settings):
            values = asyncio.run(streamed(InPieces(), stream_listeners=[listener]))
        return "".join(value.chunk for value in values if isinstance(value, StreamResponse))

    with pytest.warns(UserWarning) as warned:
        assert not heard()
    said(sorted({str(each.message) for each in warned}))
    assert heard(adapter=SchemaAdapter()) == heard(adapter=dspy.JSONAdapter()) == '"response_feedback number 3"'


def test_from_ordinary_code_and_with_an_error(said: Said) -> None:
    with dspy.context(lm=fake_lm(Writer())):
        *_, made = dspy.streamify(ReferenceLevelFeedback(), async_streaming=False)(REFERENCE)
    assert len(made.samples) == 20
    refused = dspy.utils.exceptions.LMAuthError("no such key", model="fake/model")
    with said.by(TeacherError):
        asyncio.run(streamed(Writer(*[refused] * 2)))
