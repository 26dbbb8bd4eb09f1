"""`stream`: samples as they are kept, a loop that is left, errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from dspy import lm15
from dspy.lm15 import Request, Response

import refed_dspy
from refed_dspy.errors import ConfigError, RunDirError, RunStopped
from refed_dspy.records import Sample
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


class Gated(Writer):
    """Writes one improved response, and the others when `gate` is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.wrote_one = asyncio.Event(), False

    @property
    def asynchronous(self) -> Any:
        return self._Engine(self)

    class _Engine:
        def __init__(self, writer: Gated) -> None:
            self.writer = writer

        async def complete(self, request: Request) -> Response:
            if "improved_response" in self.writer.fields(request):
                if self.writer.wrote_one:
                    await self.writer.gate.wait()
                self.writer.wrote_one = True
            return self.writer.answer(request)


def streamed(folder: Path, writer: Writer, size: int, **more: Any) -> AsyncGenerator[Sample, None]:
    return refed_dspy.stream(
        None, references(4), size=size, teacher=fake_lm(writer), run_dir=folder, track=False, **more
    )


async def test_a_sample_is_given_while_the_others_are_made(tmp_path: Path) -> None:
    writer, seen = Gated(), []
    async for sample in streamed(tmp_path / "run", writer, size=5):
        seen.append(sample)
        writer.gate.set()  # without a first sample there is no second one
    assert seen == list(refed_dspy.read_run(tmp_path / "run").samples) and len(seen) == 5


async def test_a_loop_that_is_left_stops_the_run_and_another_goes_on(tmp_path: Path) -> None:
    writer = Gated()
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
        async for sample in streamed(tmp_path / "run", Gated(), size=5):
            return sample
        raise AssertionError("no sample")

    kept = asyncio.run(first())
    settings: dict[str, Any] = {"run_dir": tmp_path / "run", "track": False}
    made = refed_dspy.synthesize(None, references(4), size=5, teacher=fake_lm(Writer()), **settings)
    assert made.complete and made.samples[0] == kept


async def test_the_next_cell_after_a_break_is_told_who_works_there(said: Said, tmp_path: Path) -> None:
    samples = streamed(tmp_path / "run", Gated(), size=5)
    async for _ in samples:
        break
    with said.by(RunDirError):
        refed_dspy.synthesize(None, references(4), size=5, teacher=fake_lm(Writer()), run_dir=tmp_path / "run")
    await samples.aclose()


async def test_an_error_comes_after_what_was_kept(said: Said, tmp_path: Path) -> None:
    writer, seen = Writer(), []
    writer.on_request = lambda _: lm15.AuthError("no such key") if len(writer.requests) > 60 else None
    with said.by(RunStopped):
        async for sample in streamed(tmp_path / "run", writer, size=40):
            seen.append(sample)
    assert seen == list(refed_dspy.read_run(tmp_path / "run").samples) != []


async def test_bad_input_is_refused_before_anything_is_asked(said: Said, tmp_path: Path) -> None:
    with said.by(ConfigError):
        await anext(streamed(tmp_path / "run", Writer(), size=0))
    assert not (tmp_path / "run").exists()
