"""MLflow and the Hub that drip: one byte at a time, so that no time-out of their libraries ever comes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.dripping_server import Dripping
from refed_dspy.errors import ConfigError
from refed_dspy.programs.mlflow_address import fetch_program, patience
from refed_dspy.tracking.registry import champion, promote
from refed_dspy.tracking.store import NotTracked, Store
from tests.support.said import Said

pytestmark = pytest.mark.slow
# The library reads the Hub's address when it is imported: so this is a process of its own.
HUB = """if True:
    import sys
    from refed_dspy import errors, load_references
    from refed_dspy.data import read
    from refed_dspy.plugins.share import push as hub
    read.HUB_PATIENCE = hub.HUB_PATIENCE = 0.5
    for ask in (
        lambda: load_references("owner/name"),
        lambda: hub.send(hub.Push(None, "owner/name", True, "main", "m", [], [], [], [], "", "")),
    ):
        try:
            ask()
        except errors.RefedError as error:
            print(error)
"""


@pytest.fixture(autouse=True)
def dripping(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where MLflow and the Hub are for this process; MLflow gets three seconds."""
    with Dripping(interval=0.2) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        assert patience() == 3
        yield server.url


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda: fetch_program("models:/refed@champion"), ConfigError),
        (lambda: fetch_program("models:/refed/1"), ConfigError),
        (lambda: fetch_program("mlflow-artifacts:/a/program.json"), ConfigError),
        (lambda: promote("refed"), ConfigError),
        (lambda: champion("refed"), NotTracked),
    ],
)
def test_mlflow_is_waited_for_three_time_outs(said: Said, ask: Callable[[], Any], kind: type[Exception]) -> None:
    with said.by(kind):
        ask()


def test_what_has_not_answered_is_not_asked_again(said: Said, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.connect()
    with said.by(NotTracked):
        store.call(store.client.get_run, "a")
    with said.by(NotTracked):
        store.call(store.client.get_run, "a")


def test_the_hub_is_waited_for_as_long_as_is_said(said: Said, dripping: str, tmp_path: Path) -> None:
    told = {"HF_ENDPOINT": dripping, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_none", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", HUB], env={**os.environ, **told}, capture_output=True, text=True)
    said(done.stdout.splitlines())
