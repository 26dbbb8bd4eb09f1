"""A deadline round what only a library's own blocking call can be asked; and an environment that another thread sets
and removes variables of while it is read: no reader of it fails."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from refed_dspy import concurrency
from refed_dspy.concurrency import OutOfTime, current_environ, left_alone, within
from refed_dspy.config.keys import know_environment
from refed_dspy.config.loading import load_config, model_settings, warn_of_unused
from refed_dspy.config.run import RunConfig
from refed_dspy.plugins.share.secrets import secret_values
from tests.support.said import Said

WORD = contextvars.ContextVar("word", default="none")
READERS: dict[str, Callable[[], object]] = {
    "all": current_environ,
    "keys": know_environment,
    "settings": lambda: load_config(RunConfig),
    "a model's": lambda: model_settings("simulated", "teacher"),
    "unused": lambda: warn_of_unused("teacher", []),
    "secrets": secret_values,
}


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


def test_an_answer_and_an_error_are_those_of_the_call(never: threading.Event) -> None:
    def fails() -> None:
        raise TimeoutError("own")

    WORD.set("mine")
    assert within(60, WORD.get) == "mine", "in the caller's context"
    with pytest.raises(TimeoutError, match="own") as raised:
        within(60, fails)
    assert not isinstance(raised.value, OutOfTime) and not left_alone() and not never.is_set()


def test_ctrl_c_in_an_event_loop_ends_what_blocks_it(never: threading.Event) -> None:
    """asyncio's own handler cancels the task, and raises nothing."""

    async def blocked() -> None:
        threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
        within(60, never.wait)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(blocked())
    assert left_alone() and not never.is_set()


@pytest.fixture
def changing() -> Iterator[None]:
    """A thread that sets and removes a variable all the time, at every moment of the other."""
    ended, before = threading.Event(), sys.getswitchinterval()

    def change() -> None:
        while not ended.is_set():
            for number in range(20):
                os.environ[f"SOMEBODYS_{number}"] = "a"
            for number in range(20):
                os.environ.pop(f"SOMEBODYS_{number}", None)

    thread = threading.Thread(target=change)
    sys.setswitchinterval(1e-6)
    thread.start()
    yield
    ended.set()
    thread.join()
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("changing")
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_reading_the_environment_while_it_changes(reader: Callable[[], object]) -> None:
    for _ in range(60):
        reader()
