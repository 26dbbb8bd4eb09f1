"""What an interrupted call says from Python: a script, a notebook's cell, a cell that awaits."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy.teachers.progress import Progress
from tests.support.scripted_engine import Writer, fake_lm, references


def settings(folder: Path, interrupt: Callable[[], Any]) -> dict[str, Any]:
    """Of a run that interrupts itself at its third sample."""

    def follow(progress: Progress) -> None:
        if progress.kept >= 3 and not interrupted:
            interrupted.append(progress.kept)
            interrupt()

    interrupted: list[int] = []
    return {
        "references": references(4), "size": 400, "teacher": fake_lm(Writer()), "run_dir": folder, "track": False,
        "on_progress": follow,
    }  # fmt: skip


def line(folder: Path) -> str:
    made = refed_dspy.read_run(folder)
    assert 3 <= len(made) < 400 and made.state == "stopped"
    go_on = f"continue with the same call or refed_dspy.resume('{folder}')"
    return f"{len(made)} of 400 samples are kept in {folder}; {go_on}"


def by_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_script_that_is_interrupted_says_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        refed_dspy.synthesize(**settings(tmp_path / "run", by_ctrl_c))
    assert type(caught.value) is KeyboardInterrupt and str(caught.value) == line(tmp_path / "run")
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) <= 10


def test_a_cell_that_is_interrupted_says_it(tmp_path: Path) -> None:
    async def cell() -> None:  # a kernel's loop is running in the main thread, and leaves Ctrl-C to Python
        refed_dspy.synthesize(**settings(tmp_path / "run", by_ctrl_c))

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt) as caught:
        loop.run_until_complete(cell())
    loop.close()
    assert str(caught.value) == line(tmp_path / "run")


async def test_a_cell_that_awaits_says_it_too(tmp_path: Path) -> None:
    run = asyncio.ensure_future(refed_dspy.asynthesize(**settings(tmp_path / "run", lambda: run.cancel())))
    with pytest.raises(asyncio.CancelledError) as caught:
        await run
    assert str(caught.value) == line(tmp_path / "run")


def test_other_work_says_where_its_answers_are(tmp_path: Path) -> None:
    rows = [{"instruction": f"Why {i}?", "response": f"Because of {i}."} for i in range(400)]
    with pytest.raises(KeyboardInterrupt, match=f"what was paid for is kept in {tmp_path}/out; continue with the same"):
        refed_dspy.recycle(
            rows, teacher="simulated", out=tmp_path / "out", on_progress=settings(tmp_path, by_ctrl_c)["on_progress"]
        )


async def test_a_cell_that_loops_over_a_stream_says_it(tmp_path: Path) -> None:
    async def cell() -> None:
        async for _ in refed_dspy.stream(**settings(tmp_path / "run", lambda: looping.cancel())):
            pass

    looping = asyncio.ensure_future(cell())
    with pytest.raises(asyncio.CancelledError) as caught:
        await looping
    assert str(caught.value) == line(tmp_path / "run")
