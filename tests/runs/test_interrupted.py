"""What an interrupted call says: a script, a notebook's cell, a cell that awaits, a loop that is left."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from dspy import lm15

import refed_dspy
from refed_dspy.errors import ConfigError, RunDirError, RunStopped
from refed_dspy.records import Sample
from refed_dspy.teachers.progress import Progress
from tests.runs.filter.helpers import CustomFilter
from tests.runs.test_synthesize import Held
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

SIZE = 400


def settings(folder: Path, interrupt: Callable[[], Any]) -> dict[str, Any]:
    """Of a run that interrupts itself at its third sample."""

    def follow(progress: Progress) -> None:
        if progress.kept >= 3 and not interrupted:
            interrupted.append(progress.kept)
            interrupt()

    interrupted: list[int] = []
    return {
        "references": references(4), "size": SIZE, "teacher": fake_lm(Writer()), "run_dir": folder, "track": False,
        "on_progress": follow,
    }  # fmt: skip


def assert_told(error: BaseException, folder: Path, *more: str) -> None:
    """What is kept, where, and what goes on, with `more` after it."""
    made = refed_dspy.read_run(folder)
    assert 3 <= len(made) < SIZE and made.state == "stopped"
    kept = f"{len(made)} of {SIZE} samples are kept in {folder}; continue with the same call"
    assert str(error) == "".join([kept, *more])


class OwnProgram(refed_dspy.ReferenceLevelFeedback):
    pass


def by_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_script_that_is_interrupted_says_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        refed_dspy.synthesize(**settings(tmp_path / "run", by_ctrl_c))
    assert type(caught.value) is KeyboardInterrupt
    assert_told(caught.value, tmp_path / "run")
    assert len("".join(traceback.format_exception(caught.value)).splitlines()) <= 10


def test_a_cell_that_is_interrupted_says_it(tmp_path: Path) -> None:
    async def cell() -> None:  # a kernel's loop is running in the main thread, and leaves Ctrl-C to Python
        refed_dspy.synthesize(**settings(tmp_path / "run", by_ctrl_c))

    loop = asyncio.new_event_loop()
    with pytest.raises(KeyboardInterrupt) as caught:
        loop.run_until_complete(cell())
    loop.close()
    assert_told(caught.value, tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "resumed"),
    [({}, True), ({"filters": [CustomFilter()]}, False), ({"program": OwnProgram()}, False)],
)
def test_resume_is_offered_where_the_folder_is_enough(tmp_path: Path, changed: dict[str, Any], resumed: bool) -> None:
    folder = tmp_path / "run"
    given = settings(folder, by_ctrl_c) | {"teacher": "simulated"} | changed
    with pytest.raises(KeyboardInterrupt) as caught:
        refed_dspy.synthesize(**given)
    assert_told(caught.value, folder, *([f" or refed_dspy.resume('{folder}')"] if resumed else []))


def test_an_interrupted_estimate_does_not_offer_the_whole_run_as_its_end(said: Said, tmp_path: Path) -> None:
    started: list[Progress] = []

    def at_once(progress: Progress) -> None:
        if not started:
            started.append(progress)
            by_ctrl_c()

    given = settings(tmp_path / "run", by_ctrl_c) | {"teacher": "simulated", "on_progress": at_once}
    with said.by(KeyboardInterrupt):
        refed_dspy.estimate(**given)


async def looped(**settings: Any) -> None:
    async for _ in refed_dspy.stream(**settings):
        pass


@pytest.mark.parametrize("cell", [refed_dspy.asynthesize, looped])
async def test_a_cell_that_awaits_or_loops_over_a_stream_says_it_too(cell: Callable[..., Any], tmp_path: Path) -> None:
    run = asyncio.ensure_future(cell(**settings(tmp_path / "run", lambda: run.cancel())))
    with pytest.raises(asyncio.CancelledError) as caught:
        await run
    assert_told(caught.value, tmp_path / "run")


def test_other_work_says_where_its_answers_are(said: Said, tmp_path: Path) -> None:
    rows = [{"instruction": f"Why {i}?", "response": f"Because of {i}."} for i in range(400)]
    with said.by(KeyboardInterrupt):
        refed_dspy.recycle(
            rows, teacher="simulated", out=tmp_path / "out", on_progress=settings(tmp_path, by_ctrl_c)["on_progress"]
        )


def test_an_error_of_ones_own_comes_without_an_exception_group(tmp_path: Path) -> None:
    """IPython prints an error with a group behind it in plain, as a stream, instead of raising it."""

    def broken(progress: Progress) -> None:
        if progress.kept:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        refed_dspy.synthesize(**settings(tmp_path / "run", by_ctrl_c) | {"on_progress": broken})
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "broken"
    behind: BaseException | None = caught.value
    while behind is not None:
        assert not isinstance(behind, BaseExceptionGroup)
        behind = behind.__context__


# --- a loop over samples that are given as they are kept


def gated() -> Held:
    """Writes one improved response, and the others when its gate is open."""
    return Held("improved_response", before=1)


def streamed(folder: Path, writer: Writer, size: int, **more: Any) -> AsyncGenerator[Sample, None]:
    return refed_dspy.stream(
        None, references(4), size=size, teacher=fake_lm(writer), run_dir=folder, track=False, **more
    )


async def test_a_sample_is_given_while_the_others_are_made(tmp_path: Path) -> None:
    writer, seen = gated(), []
    async for sample in streamed(tmp_path / "run", writer, size=5):
        seen.append(sample)
        writer.gate.set()  # without a first sample there is no second one
    assert seen == list(refed_dspy.read_run(tmp_path / "run").samples) and len(seen) == 5


async def test_a_loop_that_is_left_stops_the_run_and_another_goes_on(tmp_path: Path) -> None:
    writer = gated()
    async with aclosing(streamed(tmp_path / "run", writer, size=5)) as samples:
        async for _ in samples:
            break
    before = list(refed_dspy.read_run(tmp_path / "run").samples)
    assert len(before) == 1, "the others wait for a gate that nobody opens"
    rest = Writer()
    rest.numbers = writer.numbers
    again = [sample async for sample in streamed(tmp_path / "run", rest, size=5)]
    assert len(again) == 5 and again[: len(before)] == before
    assert len(rest.requests) == 4, "improved responses alone: what was answered is not asked again"


def test_a_loop_that_is_left_at_the_programs_end_leaves_the_folder_free(tmp_path: Path) -> None:
    async def first() -> Sample:
        async for sample in streamed(tmp_path / "run", gated(), size=5):
            return sample
        raise AssertionError("no sample")

    kept = asyncio.run(first())
    settings: dict[str, Any] = {"run_dir": tmp_path / "run", "track": False}
    made = refed_dspy.synthesize(None, references(4), size=5, teacher=fake_lm(Writer()), **settings)
    assert made.complete and made.samples[0] == kept


async def test_the_next_cell_after_a_break_is_told_who_works_there(said: Said, tmp_path: Path) -> None:
    samples = streamed(tmp_path / "run", gated(), size=5)
    async for _ in samples:
        break
    with said.by(RunDirError):
        refed_dspy.synthesize(None, references(4), size=5, teacher=fake_lm(Writer()), run_dir=tmp_path / "run")
    await samples.aclose()


async def test_an_error_comes_after_what_was_kept(tmp_path: Path) -> None:
    writer, seen = Writer(), []
    writer.on_request = lambda _: lm15.AuthError("no such key") if len(writer.requests) > 60 else None
    with pytest.raises(RunStopped, match="no such key"):
        async for sample in streamed(tmp_path / "run", writer, size=40):
            seen.append(sample)
    assert seen == list(refed_dspy.read_run(tmp_path / "run").samples) != []


async def test_bad_input_is_refused_before_anything_is_asked(said: Said, tmp_path: Path) -> None:
    with said.by(ConfigError):
        await anext(streamed(tmp_path / "run", Writer(), size=0))
    assert not (tmp_path / "run").exists()
