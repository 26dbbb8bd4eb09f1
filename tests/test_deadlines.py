"""A deadline round what only a library's own blocking call can be asked."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
from collections.abc import Iterator

import pytest

from refed_dspy import concurrency
from refed_dspy.concurrency import OutOfTime, left_alone, within
from tests.support.said import Said

WORD = contextvars.ContextVar("word", default="none")


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """What is waited for without end; it comes when the test is over."""
    monkeypatch.setattr(concurrency, "_abandoned", [])
    event = threading.Event()
    yield event
    event.set()


def test_what_does_not_answer_is_left_alone(said: Said, never: threading.Event) -> None:
    with said.by(OutOfTime) as raised:
        within(0.01, never.wait)
    assert raised.value.thread.is_alive() and left_alone()
    never.set()
    raised.value.thread.join()
    assert not left_alone(), "it has answered after all, and nothing is left to wait for"


def test_an_answer_and_an_error_are_those_of_the_call(said: Said, never: threading.Event) -> None:
    WORD.set("mine")
    assert within(60, WORD.get) == "mine", "in the caller's context"
    with said.by(TimeoutError) as raised:
        within(60, _fails)
    assert not isinstance(raised.value, OutOfTime) and not left_alone()


def _fails() -> None:
    raise TimeoutError("its own")


def test_ctrl_c_in_an_event_loop_ends_what_blocks_it(never: threading.Event) -> None:
    """asyncio's own handler cancels the task, and raises nothing."""

    async def blocked() -> None:
        threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
        within(60, never.wait)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(blocked())
    assert left_alone() and not never.is_set()
