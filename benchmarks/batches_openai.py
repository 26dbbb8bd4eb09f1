"""Files and Batches of the simulated teacher as OpenAI and Azure serve them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import web

from benchmarks.batch_life import DAY, ENDED, Batch, Service
from benchmarks.batch_lines import Line, Reading, answered, unreached
from benchmarks.files_server import File, Files, page
from benchmarks.wires import AZURE, AZURE_V1, OPENAI, OpenAI, Refused, reply

BASES = (("/openai/v1/", AZURE_V1), ("/openai/", AZURE), ("/v1/", OPENAI))
FULL = "Enqueued token limit reached for {} in this organization. Limit: 2,000,000 enqueued tokens. "
FULL += "Please try again once some in_progress batches have been completed."
TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
ENDPOINTS = {OPENAI: ("/v1/chat/completions",)}
AZURE_ENDPOINTS = ("/chat/completions", "/v1/chat/completions")
WHY = {
    "expired": "This request could not be executed before the completion window expired.",
    "cancelled": "This request was not executed, because the batch was cancelled.",
}


class OpenAIBatches(Service):
    """The files and batches of OpenAI and Azure."""

    def __init__(self, teacher: Any) -> None:
        super().__init__(teacher)
        self.files = Files()

    def reset(self) -> None:
        super().reset()
        self.files = Files()

    def place(self, path: str) -> tuple[OpenAI, list[str]] | None:
        for base, wire in BASES:
            segments = path.removeprefix(base).split("/")
            if path.startswith(base) and segments[0] in ("files", "batches"):
                return wire, segments
        return None

    async def handle(self, wire: OpenAI, segments: list[str], request: web.BaseRequest) -> web.StreamResponse:
        wire.dated(request)
        self.teacher.gate(wire, request)
        if segments[0] == "files":
            if request.method == "POST" and len(segments) == 1:
                return await self.upload(wire, request)
            return await self.files.handle(segments, request)
        route = (request.method, len(segments))
        if route == ("POST", 1):
            return self.create(wire, await request.content.read())
        if route == ("GET", 1):
            return page(self.by_id.values(), request, self.shown)
        if route == ("GET", 2):
            return reply(self.shown(self.look(segments[1])))
        if route == ("POST", 3) and segments[2] == "cancel":
            batch = self.get(segments[1])
            if batch.status in (*ENDED, "finalizing"):
                raise Refused(409, "invalid_request", f"A batch that is '{batch.status}' cannot be cancelled.")
            self.cancel(batch)
            return reply(self.shown(batch))
        raise Refused(404, "unknown_url", f"Unknown request URL: {request.method} {request.path}")

    async def upload(self, wire: OpenAI, request: web.BaseRequest) -> web.Response:
        file = await self.files.upload(wire, request, self.limits(self.teacher.settings)[1])
        self.fails_upload()
        self.teacher.stats.batch_files += 1
        return reply(file.as_dict())

    def create(self, wire: OpenAI, raw: bytes) -> web.Response:
        try:
            body = orjson.loads(raw)
            endpoint, window, source = (body[name] for name in ("endpoint", "completion_window", "input_file_id"))
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(400, "invalid_request", f"{type(error).__name__}: {error}") from None
        if window != "24h":
            raise Refused(400, "invalid_value", f"completion_window: '24h' is supported, not {window!r}")
        if endpoint not in ENDPOINTS.get(wire, AZURE_ENDPOINTS):
            raise Refused(400, "invalid_value", f"endpoint: {endpoint!r} is not supported for batches")
        more = {"source": self.source(source), "metadata": checked(body.get("metadata")), "endpoint": endpoint}
        more["files"] = {"output_file_id": None, "error_file_id": None}
        return reply(self.shown(self.start(wire, f"batch_{uuid4().hex}", more)))

    def source(self, name: Any) -> File:
        """The input file with that id. Raises Refused unless it exists, is processed and is meant for batches."""
        file = self.files.by_id.get(name) if isinstance(name, str) else None
        if file is None:
            raise Refused(400, "invalid_value", f"input_file_id: there is no file {name!r}")
        if file.purpose != "batch":
            raise Refused(400, "invalid_value", f"input_file_id: the file's purpose is '{file.purpose}', not 'batch'")
        if not file.processed():
            raise Refused(400, "invalid_value", "input_file_id: the file is still pending; wait until it is processed")
        return file

    async def read(self, batch: Batch) -> list[dict[str, Any]]:
        reading = Reading(batch.wire, batch.more["endpoint"], self.limits(batch.settings)[0])
        await reading.read(batch.more["source"].data)
        if batch.fate == "failed":
            reading.wrong("invalid_json_line", "This line is not a JSON object.", 1)
        elif batch.fate == "token_limit":
            reading.wrong("token_limit_exceeded", FULL.format(reading.model))
        if not reading.errors:
            batch.model = reading.model
        batch.lines = reading.lines
        return reading.errors

    def answered(self, line: Line, body: dict[str, Any]) -> bytes:
        return answered(line, 200, body)

    def refused(self, batch: Batch, line: Line, error: Refused) -> bytes:
        return answered(line, error.status, batch.wire.error(error))

    def unreached(self, line: Line, end: str) -> bytes:
        return unreached(line, f"batch_{end}", WHY[end])

    def keep(self, batch: Batch, end: str) -> None:  # noqa: ARG002
        """Write a file of answers and one of everything else, each if there is any."""
        kept: dict[str, Callable[[str], bool]] = {"output": lambda end: end == "answered"}
        kept["error"] = lambda end: end != "answered"
        for name, belongs in kept.items():
            if lines := [result.data for result in batch.results if belongs(result.end)]:
                file = File(b"\n".join(lines) + b"\n", f"{batch.id}_{name}.jsonl", "batch_output")
                file.breaks = batch.breaks if name == "output" else 0
                batch.more["files"][f"{name}_file_id"] = self.files.add(file).id

    def shown(self, batch: Batch) -> dict[str, Any]:
        """OpenAI's batch object."""
        shown: dict[str, Any] = {"object": "batch", "id": batch.id, "status": batch.status}
        shown |= {"endpoint": batch.more["endpoint"], "metadata": batch.more["metadata"], **batch.more["files"]}
        shown |= {"errors": {"object": "list", "data": batch.errors} if batch.errors else None}
        shown |= {"input_file_id": batch.more["source"].id, "completion_window": "24h"}
        shown |= {"created_at": int(batch.created), "expires_at": int(batch.created) + DAY}
        shown |= {f"{name}_at": int(batch.times[name]) if name in batch.times else None for name in TIMES}
        valid, done = batch.status not in ("validating", "failed"), batch.counts["answered"]
        shown["request_counts"] = {"total": batch.total if valid else 0, "completed": done}
        shown["request_counts"]["failed"] = batch.counts.total() - done
        if batch.model and valid:
            shown["model"] = batch.model
        if batch.status in ENDED and batch.spent != (0, 0):
            prompt, completion = batch.spent
            shown["usage"] = {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": 0}}
            shown["usage"] |= {"output_tokens": completion, "output_tokens_details": {"reasoning_tokens": 0}}
            shown["usage"] |= {"total_tokens": prompt + completion}
        return shown


def checked(metadata: Any) -> dict[str, str] | None:
    """The metadata of a batch. Raises Refused unless it is at most 16 short texts with short names."""
    if metadata is None:
        return None
    good = isinstance(metadata, dict) and len(metadata) <= 16
    if not good or not all(len(k) <= 64 and isinstance(v, str) and len(v) <= 512 for k, v in metadata.items()):
        message = "metadata: at most 16 texts of at most 512 characters, by names of at most 64"
        raise Refused(400, "invalid_value", message)
    return dict(metadata)
