"""Batches by way of a folder: requests are files there, and whoever answers them puts the answers beside them. So does
`vllm run-batch`, on machines that this one need not reach."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ExportError, one_line
from refed_dspy.files import whole_file
from refed_dspy.programs.lm_errors import BatchOutOfReach, BatchRejected
from refed_dspy.teachers.batch.openai import chat_line, chat_outcome
from refed_dspy.teachers.batch.service import (
    AnswerLine,
    BatchService,
    Deliver,
    PendingRequest,
    ServiceBatch,
    json_lines,
)
from refed_dspy.teachers.route import Route
from refed_dspy.teachers.transport import longest_answer

log = logging.getLogger("refed_dspy.batches")
REQUESTS, ANSWERS = ".requests.jsonl", ".answers.jsonl"
"""How the names of the two files of a batch end; its nonce is before that."""
STILL = 60.0
"""Seconds: a file that lacks answers, and has not changed for so long, is all that comes."""
_PIECE = 1 << 20


class FolderService(BatchService):
    """A folder as a batch service. A batch is a file that is there as a whole or not at all,
    so that none is made twice."""

    def __init__(self, config: TeacherConfig, route: Route) -> None:
        assert config.batch.folder is not None, "its settings were checked"
        super().__init__(route.endpoint, route.model)
        self._folder, self._longest = config.batch.folder.absolute(), longest_answer(config)
        self._seen: dict[Path, tuple[tuple[int, int], int, float]] = {}
        """File → its size and time of change, lines, and when it was first seen so."""

    def line(self, number: int, request: Any) -> bytes:
        return chat_line(number, "/v1/chat/completions", self.model, request.body)

    async def prepare(self, requests: Sequence[PendingRequest]) -> str:  # noqa: ARG002
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BatchRejected(f"{self._folder} cannot be made: {one_line(error, 150)}") from None
        return ""

    async def create(
        self,
        prepared: str,  # noqa: ARG002
        requests: Sequence[PendingRequest],
        nonce: str,
        since: float,  # noqa: ARG002
    ) -> ServiceBatch:
        path = self._folder / f"{nonce}{REQUESTS}"
        try:
            with whole_file(path) as file:
                file.writelines(request.line for request in requests)
        except (OSError, ExportError) as error:
            raise BatchRejected(f"{path} cannot be written: {one_line(error, 150)}") from None
        answers = path.with_name(f"{nonce}{ANSWERS}")
        log.info("to answer it: vllm run-batch -i %s -o %s --model %s", path, answers, self.model)
        return ServiceBatch(nonce, "waiting", len(requests))

    async def find(self, nonce: str, since: float, requests: int, prepared: str = "") -> ServiceBatch | None:  # noqa: ARG002
        return ServiceBatch(nonce, "waiting", requests) if (self._folder / f"{nonce}{REQUESTS}").exists() else None

    async def look(self, name: str) -> ServiceBatch:
        asked, answered = self._folder / f"{name}{REQUESTS}", self._folder / f"{name}{ANSWERS}"
        try:
            total, _ = await asyncio.to_thread(self._lines, asked)
        except OSError:
            raise BatchOutOfReach(f"{asked} is gone; to abandon its calls: refed status DIR --give-up") from None
        try:
            done, since = await asyncio.to_thread(self._lines, answered)
        except OSError:
            return ServiceBatch(name, "waiting for its answers", total)
        status = "completed" if done >= total else "being answered"
        if done < total and time.monotonic() - since > STILL:
            status = "expired"
        return ServiceBatch(name, status, total, done, (str(answered),))

    def _lines(self, path: Path) -> tuple[int, float]:
        """(Lines of a file, when it was first seen as it is now). Raises OSError."""
        about = path.stat()
        mark, seen = (about.st_size, about.st_mtime_ns), self._seen.get(path)
        if seen is None or seen[0] != mark:
            with path.open("rb") as file:
                lines = sum(piece.count(b"\n") for piece in iter(lambda: file.read(_PIECE), b""))
            self._seen[path] = seen = mark, lines, time.monotonic()
        return seen[1:]

    async def read(self, file: str, requests: int, deliver: Deliver) -> None:
        try:
            await deliver(json_lines(_pieces(Path(file)), self._longest, requests))
        except OSError as error:
            raise BatchOutOfReach(f"{file} cannot be read: {one_line(error, 150)}") from None

    def outcome(self, line: Mapping[str, Any]) -> AnswerLine:
        return chat_outcome(line)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece
