"""Batches of the simulated teacher, as Gemini serves them: long-running operations over files or inline requests.

The results of a batch of a file are in a file, those of inline requests in the operation, both in the order of the
requests. A batch that does not succeed has no results, even of those of its requests that were answered.
"""

from __future__ import annotations

import asyncio
import random
import string
from typing import Any

import orjson
from aiohttp import web

from benchmarks.batch_life import ENDED, Batch, Service, stamp
from benchmarks.batch_lines import YIELD, Line
from benchmarks.files_gemini import UPLOAD, GeminiFile, GeminiFiles, commands_of, page
from benchmarks.wires import OpenAI, Refused, reply
from benchmarks.wires_gemini import FIELDS, GEMINI, known, model_of

METHOD = ":batchGenerateContent"
INLINE = 20 * 1024**2  # bytes of a request to create a batch
PAGE, LONGEST = 50, 1000  # batches in a list without a page size, and the most
TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"
STATES = {
    "validating": "PENDING",
    "in_progress": "RUNNING",
    "finalizing": "RUNNING",
    "cancelling": "RUNNING",
    "completed": "SUCCEEDED",
    "failed": "FAILED",
    "expired": "EXPIRED",
    "cancelled": "CANCELLED",
}
ERRORS = {
    "expired": (4, "The batch has expired: it was pending or running for too long."),
    "cancelled": (1, "The operation was cancelled."),
}
FULL = "You exceeded your current quota: too many tokens are enqueued in batches. Please try again later."
ALPHABET = string.ascii_lowercase + string.digits


class GeminiBatches(Service):
    """The files and batches of Gemini."""

    most_requests = None
    most_bytes = 2 * 1024**3

    def __init__(self, teacher: Any) -> None:
        super().__init__(teacher)
        self.files = GeminiFiles()
        self.names = random.SystemRandom()

    def reset(self) -> None:
        super().reset()
        self.files = GeminiFiles()

    def place(self, path: str) -> tuple[OpenAI, list[str]] | None:
        if path == UPLOAD:
            return GEMINI, ["upload"]
        if model := model_of(path, METHOD):
            return GEMINI, ["create", model]
        for base in ("/v1beta/", "/download/v1beta/"):
            segments = path.removeprefix(base).split("/")
            if path.startswith(base) and segments[0] in ("files", "batches"):
                return GEMINI, segments
        return None

    async def handle(self, wire: OpenAI, segments: list[str], request: web.BaseRequest) -> web.StreamResponse:
        self.teacher.gate(wire, request, keyed="upload_id" not in request.query)
        if segments[0] == "upload" and request.method == "POST":
            return await self.upload(request)
        if segments[0] == "create" and request.method == "POST":
            return self.create(segments[1], await request.content.read(), request.host)
        if segments[0] == "files":
            return await self.files.handle(segments, request)
        if segments == ["batches"] and request.method == "GET":
            kept, token = page(list(self.by_id.values()), request, PAGE, LONGEST)
            return reply({"operations": [self.shown(batch, listed=True) for batch in kept]} | token)
        if segments[0] == "batches" and len(segments) == 2:
            return self.operation(segments[1], request.method)
        raise Refused(404, "not_found", "Not found.")

    def operation(self, segment: str, verb: str) -> web.Response:
        """Look one batch up, cancel it or delete it."""
        name, _, method = segment.partition(":")
        if (verb, method) == ("GET", ""):
            return reply(self.shown(self.look(name)))
        if (verb, method) == ("POST", "cancel"):
            batch = self.get(name)
            if batch.status in ENDED:
                raise Refused(409, "failed_precondition", f"batches/{name} has ended; it cannot be cancelled.")
            self.cancel(batch)
            return reply({})
        if (verb, method) == ("DELETE", ""):
            batch = self.get(name)
            batch.stop.set()
            del self.by_id[name]
            return reply({})
        raise Refused(404, "not_found", "Not found.")

    async def upload(self, request: web.BaseRequest) -> web.Response:
        if "upload_id" not in request.query:
            return await self.files.begin(request, self.limits(self.teacher.settings)[1])
        raw = await request.content.read()
        last = "finalize" in commands_of(request)
        if last:
            self.fails_upload()
        answer = self.files.receive(request, raw)
        self.teacher.stats.batch_files += last
        return answer

    def create(self, model: str, raw: bytes, host: str) -> web.Response:
        GEMINI.exists(model)
        if len(raw) > INLINE:
            raise Refused(400, "invalid_argument", f"Request payload size exceeds the limit: {INLINE} bytes.")
        try:
            asked = known(orjson.loads(raw), ["batch"], "")["batch"]
            asked = known(asked, ["displayName", "inputConfig", "model", "name", "priority"], " at 'batch'")
            source = known(asked["inputConfig"], ["fileName", "requests"], " at 'batch.input_config'")
            more = {"host": host, "title": str(asked.get("displayName", "")), **self.source(source)}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, "invalid_argument", f"{type(error).__name__}: {error}") from None
        if "file" not in more:
            self.fails_upload()
        if self.teacher.settings.batch_fates[:1] == ["token_limit"]:
            self.teacher.settings.batch_fates.pop(0)
            raise Refused(429, "resource_exhausted", FULL)
        more["model"] = model
        return reply(self.shown(self.start(GEMINI, "".join(self.names.choices(ALPHABET, k=36)), more)))

    def source(self, source: dict[str, Any]) -> dict[str, Any]:
        """Where the requests are, a `file` or `lines`. Raises Refused for a file that cannot be used, ValueError for
        inline requests that are none."""
        if name := source.get("fileName"):
            file = self.files.get(str(name).removeprefix("files/"))
            if not file.active():
                text = f"The File {file.id} is not in an ACTIVE state and usage is not allowed."
                raise Refused(409, "failed_precondition", text)
            return {"file": file}
        listed = source["requests"]["requests"]
        if not listed:
            raise ValueError("* GenerateContentBatch.input_config.requests: it has no requests")
        lines: list[Line] = []
        for number, one in enumerate(listed):
            known(one["request"], FIELDS, f" at 'batch.input_config.requests.requests[{number}].request'")
            lines.append(Line(str((one.get("metadata") or {}).get("key", "")), one["request"], number))
        return {"lines": lines}

    async def read(self, batch: Batch) -> list[dict[str, Any]]:
        batch.model = batch.more["model"]
        errors: list[str] = []
        if "file" in batch.more:
            errors = await lines_of(batch)
        else:
            batch.lines = batch.more.pop("lines")
        most = self.limits(batch.settings)[0]
        if most is not None and len(batch.lines) > most:
            errors.append(f"The batch has {len(batch.lines)} requests; {most} are allowed.")
        if batch.fate == "failed":
            errors.append("Line 1 of the input file is not a JSON object.")
        return [{"code": 3, "message": message} for message in errors]

    def answered(self, line: Line, body: dict[str, Any]) -> bytes:
        return orjson.dumps({"key": line.custom_id, "response": body} if line.custom_id else {"response": body})

    def refused(self, batch: Batch, line: Line, error: Refused) -> bytes:  # noqa: ARG002
        status = GEMINI.status_of(error)
        return orjson.dumps({"key": line.custom_id, "error": status} if line.custom_id else {"error": status})

    def unreached(self, line: Line, end: str) -> bytes:  # noqa: ARG002
        return b""  # an expired or cancelled batch has no results

    def keep(self, batch: Batch, end: str) -> None:
        if end != "completed":
            return
        results = sorted(batch.results, key=lambda result: result.line.number)
        if "file" in batch.more:
            file = GeminiFile(b"".join(kept.data + b"\n" for kept in results), batch.more["host"], f"batch-{batch.id}")
            file.generated, file.breaks = True, batch.breaks
            batch.more["output"] = {"responsesFile": f"files/{self.files.add(file).id}"}
        else:
            inlined = [inline(kept.line, kept.data) for kept in results]
            batch.more["output"] = {"inlinedResponses": {"inlinedResponses": inlined}}

    def shown(self, batch: Batch, *, listed: bool = False) -> dict[str, Any]:
        """The operation of a batch; inline results are not in one that is listed."""
        name, more = f"batches/{batch.id}", batch.more
        last = max(batch.times.values(), default=batch.created)
        told: dict[str, Any] = {"@type": TYPE, "model": f"models/{more['model']}", "displayName": more["title"]}
        told |= {"createTime": stamp(batch.created), "updateTime": stamp(last), "batchStats": stats(batch)}
        told |= {"state": f"BATCH_STATE_{STATES[batch.status]}", "name": name}
        if "file" in more:
            told["inputConfig"] = {"fileName": f"files/{more['file'].id}"}
        shown: dict[str, Any] = {"name": name, "metadata": told}
        if batch.status not in ENDED:
            return shown
        told["endTime"] = stamp(last)
        shown["done"] = True
        if batch.status != "completed":
            code, message = ERRORS.get(batch.status, (3, ""))
            shown["error"] = batch.errors[0] if batch.errors else {"code": code, "message": message}
        elif not (listed and "inlinedResponses" in more["output"]):
            told["output"] = more["output"]
            shown["response"] = {"@type": f"{TYPE}Output", **more["output"]}
        return shown


def stats(batch: Batch) -> dict[str, str]:
    """The counts of a batch's requests: texts, without zeros, as protobuf writes them."""
    total = batch.total or len(batch.more.get("lines", ()))
    done = batch.counts["answered"]
    failed = total - done if batch.status in ENDED else batch.counts["refused"]
    counts = {"request": total, "successful": done, "failed": failed, "pending": total - done - failed}
    names = {name: "requestCount" if name == "request" else f"{name}RequestCount" for name in counts}
    return {names[name]: str(count) for name, count in counts.items() if count}


async def lines_of(batch: Batch) -> list[str]:
    """Read the batch's file into it. Returns what is wrong with the file: a mistake inside a request is none."""
    for number, raw in enumerate(batch.more["file"].data.splitlines(), 1):
        if number % YIELD == 0:
            await asyncio.sleep(0)
        if not raw.strip():
            continue
        try:
            sent = orjson.loads(raw)
            request = sent["request"]
            batch.lines.append(Line(str(sent.get("key", "")), dict(request), number))
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"Line {number} of the input file is not a JSON object with a request."]
    return [] if batch.lines else ["The input file has no requests."]


def inline(line: Line, data: bytes) -> Any:
    """The result of an inline request, with the metadata it came with; without anything where it is spoiled."""
    shown: dict[str, Any] = {"metadata": {"key": line.custom_id}} if line.custom_id else {}
    try:
        said = orjson.loads(data)
    except ValueError:
        return shown
    return shown | {name: part for name, part in said.items() if name != "key"}
