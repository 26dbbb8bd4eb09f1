"""Progress in Python: who is told, how often, and where a bar stands."""

from __future__ import annotations

import asyncio
import builtins
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import refed_dspy
from refed_dspy.cli.display import shown
from refed_dspy.teachers.progress import Progress, Watch
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


def run(folder: Path, size: int = 3, **more: Any) -> Any:
    return refed_dspy.synthesize(
        None, references(4), size=size, teacher=fake_lm(Writer()), run_dir=folder, track=False, **more
    )


# --- on_progress


async def test_counts_are_told_as_they_change() -> None:
    progress, told = Progress(size=9), asyncio.Queue[int]()
    async with Watch(lambda now: told.put_nowait(now.kept)).following(progress):
        assert await told.get() == 0
        for kept in (4, 7):
            progress.kept = kept
            assert await asyncio.wait_for(told.get(), 30) == kept
        progress.kept = 9
    assert told.get_nowait() == 9 and told.empty(), "a last time at the end"


def test_the_same_counts_are_told_once_and_a_last_time_also_where_the_work_failed() -> None:
    told: list[int] = []
    progress = Progress(size=9)
    with pytest.raises(KeyError), Watch[Progress](lambda now: told.append(now.kept)).telling(progress) as teller:
        for _ in range(5):
            teller.tell()
        progress.kept = 5
        raise KeyError
    assert told == [0, 5]


class Bug(Exception):
    """The caller's own."""


@pytest.mark.parametrize("at", [0, 3])
def test_an_error_in_on_progress_ends_the_run_which_goes_on_later(tmp_path: Path, at: int) -> None:
    def buggy(progress: Progress) -> None:
        if progress.kept >= at:
            raise Bug

    with pytest.raises(Bug):
        run(tmp_path / "run", on_progress=buggy)
    assert run(tmp_path / "run").complete


async def test_an_error_in_the_middle_cancels_the_work() -> None:
    progress, ended = Progress(size=9), []

    def buggy(now: Progress) -> None:
        if now.kept:
            raise Bug

    with pytest.raises(Bug):
        async with Watch(buggy).following(progress):
            progress.kept = 1
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)
    assert ended


async def test_an_error_of_the_work_keeps_its_cause() -> None:
    with pytest.raises(ValueError) as raised:
        async with Watch[Progress](print).following(Progress(size=9)):
            raise ValueError from KeyError("why")
    assert isinstance(raised.value.__cause__, KeyError)


# --- the bar


class Terminal:
    """A pseudo-terminal as stderr, and what was written to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._master, end = os.openpty()
        self._stream = os.fdopen(end, "w")
        monkeypatch.setattr(sys, "stderr", self._stream)

    def written(self) -> str:
        self._stream.flush()
        os.set_blocking(self._master, False)
        try:
            return os.read(self._master, 1 << 20).decode(errors="replace")
        except BlockingIOError:
            return ""
        finally:
            self._stream.close()
            os.close(self._master)


def test_a_terminal_shows_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    run(tmp_path / "run")
    written = terminal.written()
    assert "0/3 samples" in written and "3/3 samples" in written


@pytest.mark.parametrize("silenced", [True, False])
def test_elsewhere_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silenced: bool) -> None:
    terminal, log = Terminal(monkeypatch), io.StringIO()
    if not silenced:
        monkeypatch.setattr(sys, "stderr", log)
    run(tmp_path / "run", progress=not silenced)
    assert terminal.written() == log.getvalue() == ""


def test_the_command_line_has_its_own_display_alone() -> None:
    assert shown(lambda progress, on_progress: progress) is False


def test_a_notebook_shows_one_that_is_renewed(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython is not installed here; of it `display` is used, and what its handle does."""
    shown_pictures, renewed = list[Any](), list[Any]()

    class Handle:
        update = staticmethod(renewed.append)

    def display(picture: Any, display_id: bool = False) -> Handle:
        shown_pictures.append((picture, display_id))
        return Handle()

    module = ModuleType("IPython.display")
    module.display = display  # type: ignore[attr-defined]
    shell = type("ZMQInteractiveShell", (), {"__module__": "ipykernel.zmqshell"})()
    get_ipython: Callable[[], Any] = lambda: shell  # noqa: E731
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(builtins, "get_ipython", get_ipython, raising=False)
    run(tmp_path / "run")
    told, pictured = shown_pictures
    said(told[0]._repr_mimebundle_((), ())["text/html"])
    assert pictured[1] and renewed
    assert "3/3 samples" in renewed[-1]._repr_mimebundle_((), ())["text/html"]
