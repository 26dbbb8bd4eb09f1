"""The Batches endpoints of the simulated teacher, as OpenAI and Azure serve them, and the life of a batch.

A batch takes `batch_seconds`: a tenth validating, eight tenths in_progress, a tenth finalizing. Its requests are
answered in an order drawn by the seed, at the end of in_progress or, with batch_progressive, spread over it;
only then are they billed, apart from the interactive ones. Settings are those in force when it was created.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
from aiohttp import web

from benchmarks.batch_lines import YIELD, Line, Reading, answered, unreached
from benchmarks.files_server import File, Files, page
from benchmarks.model_rules import keep_rules
from benchmarks.simulated import Settings
from benchmarks.wires import AZURE, AZURE_V1, FILTERED, OPENAI, REPEATED, Chat, Dropped, OpenAI, Refused, reply

if TYPE_CHECKING:
    from benchmarks.server import Simulator

BASES = (("/openai/v1/", AZURE_V1), ("/openai/", AZURE), ("/v1/", OPENAI))
DAY = 24 * 3600
FULL = "Enqueued token limit reached for {} in this organization. Limit: 2,000,000 enqueued tokens. "
FULL += "Please try again once some in_progress batches have been completed."
TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
ENDED = ("completed", "failed", "expired", "cancelled")
ENDPOINTS = {OPENAI: ("/v1/chat/completions",)}
AZURE_ENDPOINTS = ("/chat/completions", "/v1/chat/completions")


def place(path: str) -> tuple[OpenAI, list[str]] | None:
    """The wire of a Files or Batches path and the path's segments after its base; None for any other path."""
    for base, wire in BASES:
        segments = path.removeprefix(base).split("/")
        if path.startswith(base) and segments[0] in ("files", "batches"):
            return wire, segments
    return None


@dataclass
class Batch:
    """One batch. The next `polls` look-ups answer 500."""

    wire: OpenAI
    endpoint: str
    source: File
    metadata: dict[str, str] | None
    fate: str
    settings: Settings
    polls: int = 0
    status: str = "validating"
    id: str = field(default_factory=lambda: f"batch_{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    times: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    model: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    spent: tuple[int, int] = (0, 0)
    output: list[bytes] = field(default_factory=list)
    failures: list[bytes] = field(default_factory=list)
    files: dict[str, str | None] = field(default_factory=lambda: {"output_file_id": None, "error_file_id": None})
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, status: str) -> None:
        self.status = status
        self.times[f"{status}_at"] = int(time.time())

    async def wait(self, seconds: float | None) -> None:
        """Wait `seconds` (None: for ever), or until the batch is cancelled."""
        try:
            await asyncio.wait_for(self.stop.wait(), seconds)
        except TimeoutError:
            return

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        shown: dict[str, Any] = {"object": "batch", "id": self.id, "endpoint": self.endpoint, "status": self.status}
        shown |= {"errors": {"object": "list", "data": self.errors} if self.errors else None}
        shown |= {"input_file_id": self.source.id, "completion_window": "24h", "metadata": self.metadata}
        shown |= {"created_at": self.created, "expires_at": self.created + DAY, **self.files}
        shown |= {f"{name}_at": self.times.get(f"{name}_at") for name in TIMES}
        shown["request_counts"] = {"total": self.total, "completed": self.completed, "failed": self.failed}
        if self.model:
            shown["model"] = self.model
        if self.status in ENDED and self.spent != (0, 0):
            prompt, completion = self.spent
            shown["usage"] = {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": 0}}
            shown["usage"] |= {"output_tokens": completion, "output_tokens_details": {"reasoning_tokens": 0}}
            shown["usage"] |= {"total_tokens": prompt + completion}
        return shown


class Batches:
    """The files and batches of one simulated teacher, which writes the answers."""

    def __init__(self, teacher: Simulator) -> None:
        self.teacher = teacher
        self.files = Files()
        self.by_id: dict[str, Batch] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.reseed()

    def reseed(self) -> None:
        """Restart the generator of orders and faults."""
        self.lots = random.Random(f"3 {self.teacher.settings.seed}")

    def reset(self) -> None:
        """Forget every file and batch, those under way too."""
        for task in self.tasks:
            task.cancel()
        self.files = Files()
        self.by_id = {}

    async def handle(self, wire: OpenAI, segments: list[str], request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request for a path that `place` knows. Raises Refused or Dropped as the handlers do."""
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
            return page(self.by_id.values(), request)
        if route == ("GET", 2):
            return self.look(self.get(segments[1]))
        if route == ("POST", 3) and segments[2] == "cancel":
            return self.cancel(self.get(segments[1]))
        raise Refused(404, "unknown_url", f"Unknown request URL: {request.method} {request.path}")

    async def upload(self, wire: OpenAI, request: web.BaseRequest) -> web.Response:
        settings = self.teacher.settings
        file = await self.files.upload(wire, request, settings.batch_max_bytes)
        if settings.batch_fates[:1] == ["upload500"]:
            settings.batch_fates.pop(0)
            raise Refused(500, "server_error", "The simulated server failed on purpose.")
        self.teacher.stats.batch_files += 1
        return reply(file.as_dict())

    def get(self, name: str) -> Batch:
        if name not in self.by_id:
            raise Refused(404, "not_found", f"No batch found with id '{name}'.")
        return self.by_id[name]

    def look(self, batch: Batch) -> web.Response:
        if batch.polls:
            batch.polls -= 1
            raise Refused(500, "server_error", "The simulated server failed on purpose.")
        return reply(batch.as_dict())

    def cancel(self, batch: Batch) -> web.Response:
        if batch.status in (*ENDED, "finalizing"):
            raise Refused(409, "invalid_request", f"A batch that is '{batch.status}' cannot be cancelled.")
        if batch.status != "cancelling":
            batch.enter("cancelling")
            batch.stop.set()
        return reply(batch.as_dict())

    def create(self, wire: OpenAI, raw: bytes) -> web.Response:
        """Start a batch. It takes its fate from the front of batch_fates."""
        try:
            body = orjson.loads(raw)
            endpoint, window, source = (body[name] for name in ("endpoint", "completion_window", "input_file_id"))
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(400, "invalid_request", f"{type(error).__name__}: {error}") from None
        if window != "24h":
            raise Refused(400, "invalid_value", f"completion_window: '24h' is supported, not {window!r}")
        if endpoint not in ENDPOINTS.get(wire, AZURE_ENDPOINTS):
            raise Refused(400, "invalid_value", f"endpoint: {endpoint!r} is not supported for batches")
        file, metadata = self.source(source), checked(body.get("metadata"))
        fates = self.teacher.settings.batch_fates
        fate = fates.pop(0) if fates else "ok"
        settings = self.teacher.settings.copy()
        batch = Batch(wire, endpoint, file, metadata, fate, settings, polls=3 if fate == "poll500" else 0)
        self.by_id[batch.id] = batch
        self.teacher.stats.batches += 1
        task = asyncio.create_task(self.run(batch))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if fate == "create500":
            raise Refused(500, "server_error", "The simulated server failed on purpose.")
        if fate == "createdrop":
            raise Dropped
        return reply(batch.as_dict())

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

    async def run(self, batch: Batch) -> None:
        """Take one batch from validating to its end state."""
        beat = batch.settings.batch_seconds / 10
        reading = Reading(batch.wire, batch.endpoint, batch.settings.batch_max_requests)
        await reading.read(batch.source.data)
        if batch.fate == "failed":
            reading.wrong("invalid_json_line", "This line is not a JSON object.", 1)
        elif batch.fate == "token_limit":
            reading.wrong("token_limit_exceeded", FULL.format(reading.model))
        await batch.wait(beat)
        if reading.errors and not batch.stop.is_set():
            batch.errors = reading.errors
            batch.enter("failed")
            return
        batch.total, batch.model = len(reading.lines), reading.model
        if not batch.stop.is_set():
            batch.enter("in_progress")
        self.lots.shuffle(reading.lines)
        rest = await self.execute(batch, reading.lines, 8 * beat)
        await self.finish(batch, rest, beat)

    async def execute(self, batch: Batch, lines: list[Line], span: float) -> list[Line]:
        """Answer the requests in that order within `span` seconds. Returns those it did not get to."""
        if batch.fate == "stuck":
            await batch.wait(None)
        many = len(lines) // 2 if batch.fate in ("expired", "cancelled") else len(lines)
        spread = batch.settings.batch_progressive
        start = time.monotonic()
        if not spread:
            await batch.wait(span)
        for done, line in enumerate(lines[:many]):
            left = start + span * (done + 1) / len(lines) - time.monotonic() if spread else 0.0
            if left > 0.001:
                await batch.wait(left)
            elif done % (YIELD // 4) == 0:
                await asyncio.sleep(0)
            if batch.stop.is_set():
                return lines[done:]
            self.answer(batch, line)
        return lines[many:]

    async def finish(self, batch: Batch, rest: list[Line], beat: float) -> None:
        """Write the files of a batch after another `beat` seconds and end it."""
        end = "expired" if batch.fate == "expired" else "completed"
        if batch.stop.is_set() or batch.fate == "cancelled":
            end = "cancelled"
        if end == "completed":
            batch.enter("finalizing")
        elif end == "cancelled" and batch.status != "cancelling":
            batch.enter("cancelling")
        await asyncio.sleep(beat)
        why = "This request could not be executed before the completion window expired."
        if end == "cancelled":
            why = "This request was not executed, because the batch was cancelled."
        batch.failures += [unreached(line, f"batch_{end}", why) for line in rest]
        batch.failed += len(rest)
        for name, lines in (("output", batch.output), ("error", batch.failures)):
            if lines:
                file = File(b"\n".join(lines) + b"\n", f"{batch.id}_{name}.jsonl", "batch_output")
                file.breaks = int(name == "output" and batch.fate == "download_drop")
                batch.files[f"{name}_file_id"] = self.files.add(file).id
        batch.output, batch.failures = [], []  # now in the files
        batch.enter(end)

    def answer(self, batch: Batch, line: Line) -> None:
        """Answer and bill one request, or fail it as its fate says."""
        wire, fate, faults = batch.wire, "", batch.settings.batch_faults
        if faults:
            at, tops = self.lots.random(), accumulate(faults.values())
            fate = next((name for name, top in zip(faults, tops, strict=True) if at < top), "")
        if fate == "missing":
            return
        try:
            if fate in REFUSALS:
                status, code, text = REFUSALS[fate]
                raise Refused(status, code, text.format(self.teacher.key))
            chat, body, spent = self.written(wire, line, fate)
        except Refused as error:
            batch.failures.append(answered(line, error.status, wire.error(error)))
            batch.failed += 1
            return
        self.teacher.stats.batched(chat.digest, *spent)
        batch.spent = (batch.spent[0] + spent[0], batch.spent[1] + spent[1])
        made = answered(line, 200, body)
        batch.output.append(made[: len(made) * 2 // 3] if fate == "garbage" else made)
        batch.completed += 1

    def written(self, wire: OpenAI, line: Line, fate: str) -> tuple[Chat, dict[str, Any], tuple[int, int]]:
        """A request, the body of its answer, and the answer's prompt and completion tokens."""
        try:
            chat = wire.read(orjson.dumps(line.body))
            make = self.teacher.maker(chat)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, "invalid_request", f"{type(error).__name__}: {error}") from None
        keep_rules(self.teacher.settings.rules, chat.body)
        prompt, _ = self.teacher.tokens.measure(chat)
        self.teacher.times[chat.digest] = times = self.teacher.times[chat.digest] + 1
        body, (_, _, completion) = self.teacher.compose(wire, chat, make, times, fate, (prompt, 0))
        return chat, body, (prompt, completion)


REFUSALS: dict[str, tuple[int, str, str]] = {
    "400": (400, "content_filter", FILTERED),
    "429": (429, "rate_limit_exceeded", "Rate limit reached. Please try again later."),
    "500": (500, "server_error", "The simulated server failed on purpose."),
    "keyerror": (400, "invalid_header", REPEATED),
}


def checked(metadata: Any) -> dict[str, str] | None:
    """The metadata of a batch. Raises Refused unless it is at most 16 short texts with short names."""
    if metadata is None:
        return None
    good = isinstance(metadata, dict) and len(metadata) <= 16
    if not good or not all(len(k) <= 64 and isinstance(v, str) and len(v) <= 512 for k, v in metadata.items()):
        message = "metadata: at most 16 texts of at most 512 characters, by names of at most 64"
        raise Refused(400, "invalid_value", message)
    return dict(metadata)
