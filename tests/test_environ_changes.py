"""Another thread may set and remove variables while the environment is read: no reader of it fails."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from refed_dspy.concurrency import current_environ
from refed_dspy.config.keys import know_environment
from refed_dspy.config.loading import load_config, model_settings, warn_of_unused
from refed_dspy.config.run import RunConfig
from refed_dspy.plugins.share.secrets import secret_values

READERS: dict[str, Callable[[], object]] = {
    "all": current_environ,
    "keys": know_environment,
    "settings": lambda: load_config(RunConfig),
    "a model's": lambda: model_settings("simulated", "teacher"),
    "unused": lambda: warn_of_unused("teacher", []),
    "secrets": secret_values,
}


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
