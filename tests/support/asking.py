"""Asking a predictor as a stage of a program does, and what the calls of a program are made for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dspy
from dspy.lm15 import Request, Response

from refed_dspy.jobs.job import job
from refed_dspy.jobs.session import Session
from refed_dspy.jobs.work import Work
from refed_dspy.programs.asking import about, again
from refed_dspy.programs.question import current_question, current_repetition
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.progress import NOBODY, Progress, Watch
from refed_dspy.teachers.recorded import RecordedLM, recorded_lm
from tests.support.scripted_engine import Writer, fake_lm


async def ask(stage: str, item: str, predictor: dspy.Module, repetition: int = 0, **inputs: Any) -> dspy.Prediction:
    """The answer of `predictor` for `inputs`, from the language model of this context."""
    with about(stage, item):
        return await predictor.acall(config=again(repetition), **inputs)


class Noting:
    """An engine that keeps what each request is made for, as a recorded teacher sees it, and lets a Writer answer."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.asked: list[tuple[str, str, int]] = []
        """Stage, item and repetition of each request."""

    @property
    def lm(self) -> RecordedLM:
        """The language model whose requests come here. On a running event loop."""
        return recorded_lm(open_teacher(fake_lm(self.writer)), self)

    async def complete(self, request: Request) -> Response:
        question = current_question()
        assert question is not None
        self.asked.append((question.stage, question.item, current_repetition()))
        return self.writer.answer(request)


@asynccontextmanager
async def row_job(folder: Path, work: Work, watch: Watch[Progress] = NOBODY) -> AsyncIterator[Session]:
    """The session of a job whose models run."""
    with job(folder, work, watch) as at:
        async with at.asking() as session:
            yield session
