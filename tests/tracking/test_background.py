"""When the work waits for MLflow, and for how long; and what is tracked by default."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from refed_dspy.programs.mlflow_address import tracking_uri
from refed_dspy.tracking.background import run_wanted, tracking, wanted
from refed_dspy.tracking.store import Store
from tests.support import mlflow_stores
from tests.support.mlflow_stores import Mlflow
from tests.support.said import Said
from tests.support.tracked_runs import made, warnings

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked


class Slow:
    """A copy to MLflow that hangs once it has begun."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()
        self.copies = 0

    def __call__(self, store: Store, last: bool) -> None:
        self.copies += 1
        self.begun.set()
        self.over.wait()


@pytest.fixture
def slow(tracked: Mlflow) -> Iterator[Slow]:
    copy = Slow()
    yield copy
    copy.over.set()


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_store_that_hangs(said: Said, slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt), tracking(Path("run"), slow, True, 60):
        slow.begun.wait()
        raise KeyboardInterrupt
    (warned,) = warnings(caplog)
    said(warned)


@pytest.mark.slow
async def test_ctrl_c_gets_through_while_the_end_is_copied(
    said: Said, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        with tracking(Path("run"), slow, True, 60) as tracker:
            await tracker.told()

    task = asyncio.create_task(work())
    await asyncio.to_thread(slow.begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    said(warnings(caplog)[0])


def test_after_ctrl_c_nothing_is_begun_at_a_store_that_is_late(slow: Slow) -> None:
    """A second start would have a run of its own there."""
    with pytest.raises(KeyboardInterrupt), tracking(Path("run"), slow, True, 60) as tracker:
        slow.begun.wait()
        raise KeyboardInterrupt
    slow.over.set()
    vars(tracker)["_thread"].join()
    assert slow.copies == 1


@pytest.mark.parametrize(
    ("said", "track", "expected"),
    [("", None, (True, False)), ("true", None, (True, True)), ("false", None, (False, False)),
     ("false", True, (True, True)), ("true", False, (False, False))],
)  # fmt: skip
def test_compiles_are_tracked_and_runs_where_one_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, track: bool | None, expected: tuple[bool, bool]
) -> None:
    monkeypatch.setenv("REFED_TRACK", said)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert (wanted(track), run_wanted(track, tmp_path)) == expected


def test_runs_are_tracked_where_a_store_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFED_TRACK")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert run_wanted(None, tmp_path)


def test_a_run_that_was_tracked_once_is_tracked_from_then_on(tracked: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    made(size=3)
    for variable in ("REFED_TRACK", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable)
    assert run_wanted(None, Path("run")) and not run_wanted(None, Path("another"))


def test_the_store_is_in_the_data_folder_unless_an_address_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert tracking_uri() == "sqlite:////data/refed-dspy/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking_uri() == "http://127.0.0.1:9"
