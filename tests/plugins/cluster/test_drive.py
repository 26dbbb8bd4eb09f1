"""A run on a cluster from its beginning to its end, with workers in this process: what is left of a killed one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.runs import REFERENCES
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ExportError, FolderInUse, InputError, RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import CAPPED
from refed_dspy.ledger.summary import LIVE
from refed_dspy.plugins.cluster import drive
from refed_dspy.plugins.cluster.shards import shard_folder
from refed_dspy.plugins.cluster.worker import LOST
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers.progress import Progress
from tests.plugins.cluster.here import work_here
from tests.runs.filter.helpers import http
from tests.support.said import Said

SIZE = 8
CAPS = {"max_calls": 12, "max_cost": 5.0, "max_minutes": 3}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of two workers in this process."""
    work_here(monkeypatch)


def made(server: SimulatedTeacher, folder: Path, **more: Any) -> Synthesis:
    """A run in two shards."""
    settings = {"size": SIZE, "teacher": http(server, max_tokens=2000), "shards": 2, "cluster": "here", **more}
    return refed_dspy.synthesize(None, REFERENCES[:4], run_dir=folder, progress=False, **settings)


def killed(server: SimulatedTeacher, folder: Path, requests: int, **more: Any) -> int:
    """Begin the run, and kill it once so many `requests` were sent; how many there were in all."""
    server.control(latency=0.05)
    keywords = {"server": server, "folder": folder, **more}
    process = multiprocessing.get_context("fork").Process(target=made, kwargs=keywords)
    process.start()
    while server.stats()["requests"] < requests and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    server.control(latency=0)
    return int(server.stats()["requests"])


def stored(folder: Path, name: str) -> Any:
    with Ledger.read(folder) as ledger:
        return ledger.meta(name)


def test_a_killed_run_refuses_other_work_and_goes_on_under_its_caps_with_the_time_it_has_used(
    said: Said, server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = killed(server, tmp_path, 6, **CAPS)
    assert 6 <= sent < 12
    before, begun = stored(tmp_path, "identity"), time.monotonic()
    shard = shard_folder(tmp_path, 0)
    with Ledger.create(tmp_path), Ledger.create(shard), said.by(FolderInUse):
        made(server, tmp_path)
    assert time.monotonic() - begun < LOST, "it did not wait for the workers of the first"
    for other in ({"seed": 7}, {"shards": 3}):
        with said.by(RunDirError):
            made(server, tmp_path, **other)
    assert stored(tmp_path, "identity") == before and server.stats()["requests"] == sent
    again = made(server, tmp_path)
    assert sent < server.stats()["requests"] <= 12 and again.state == CAPPED
    assert {name: again.status["caps"][name] for name in CAPS} == CAPS
    with Ledger.read(tmp_path) as ledger:
        (begun, last), _ = ledger.db.execute("SELECT begun, last FROM starts ORDER BY begun").fetchall()
    assert last > begun
    monkeypatch.setattr(drive, "let_go", None)  # what was gathered is not gathered again
    assert made(server, tmp_path, max_calls=1000).complete


def _full(*_: Any) -> None:
    raise RunStopped("the disk is full")


def _killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", [_full, _killed])
def test_it_is_not_done_before_it_is_gathered(
    said: Said, end: Callable[..., None], server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(drive, "gather", end)
        sent = killed(server, tmp_path, 1000, size=2)  # by itself
    there = refed_dspy.read_run(tmp_path)
    assert (there.state, there.status["kept"]) == ("stopped", 0)
    said(there.reason)
    assert made(server, tmp_path, size=2).state == "done" and server.stats()["requests"] == sent


def test_numbers_that_cannot_be_written_are_said_once_and_the_run_goes_on(
    server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / LIVE).mkdir()
    assert made(server, tmp_path, size=2).complete
    assert [record.levelname for record in caplog.records if LIVE in record.getMessage()] == ["WARNING"]


def test_mistaken_input_that_is_seen_late_is_told_with_what_was_paid_for(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    def full(progress: Progress) -> None:
        if progress.calls > 4:
            raise ExportError("chart.png")

    server.control(latency=0.05)
    with pytest.raises(RunStopped, match=r"^chart\.png; .* refed_dspy\.resume"):
        made(server, tmp_path, on_progress=full)
    with Ledger.read(tmp_path) as ledger:
        assert ledger.has_answers(), "what was made is gathered"
    server.control(latency=0)
    assert made(server, tmp_path, size=2).complete


def test_a_key_that_is_refused_is_mistaken_input_until_something_is_paid_for(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    for answered, kind, code in ((0, InputError, 2), (6, RunStopped, 1)):
        server.control(auth_fails_after=answered)
        with pytest.raises(kind, match="api_key_env") as refused:
            made(server, tmp_path)
        assert refused.value.exit_code == code and refed_dspy.read_run(tmp_path).state == "stopped"
    server.control(auth_fails_after=None)
    assert made(server, tmp_path, size=2).complete
