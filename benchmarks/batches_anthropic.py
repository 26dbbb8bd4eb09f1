"""Message Batches of the simulated teacher, as Anthropic serves them.

A batch begins at once, and until it has ended all its requests count as `processing`. It never fails as a whole:
where the fate is `failed`, each of its requests is errored. Mistakes in the params of a request are found when the
request is processed, and make only that one errored.
"""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import web

from benchmarks.batch_life import DAY, ENDED, Batch, Service, stamp
from benchmarks.batch_lines import Line
from benchmarks.files_server import sent
from benchmarks.wires import ANTHROPIC, OpenAI, Refused, reply

BASE = "/v1/messages/"
CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
PAGE, LONGEST = 20, 1000  # batches in a list without a limit, and the most
ENDS = {"answered": "succeeded", "refused": "errored", "cancelled": "canceled", "expired": "expired"}


class AnthropicBatches(Service):
    """The batches of Anthropic."""

    most_requests = 100_000
    most_bytes = 256_000_000

    def place(self, path: str) -> tuple[OpenAI, list[str]] | None:
        segments = path.removeprefix(BASE).split("/")
        return (ANTHROPIC, segments) if path.startswith(BASE) and segments[0] == "batches" else None

    async def handle(self, wire: OpenAI, segments: list[str], request: web.BaseRequest) -> web.StreamResponse:
        self.teacher.gate(wire, request)
        wire.dated(request)
        route = (request.method, len(segments))
        if route == ("POST", 1):
            return self.create(await request.content.read(), request)
        if route == ("GET", 1):
            return reply(self.page(request.query))
        if route == ("GET", 2):
            return reply(self.shown(self.look(segments[1])))
        if route == ("DELETE", 2):
            return self.delete(self.get(segments[1]))
        if route == ("POST", 3) and segments[2] == "cancel":
            batch = self.get(segments[1])
            if batch.status in ENDED:
                raise Refused(400, "invalid_request", f"Batch {batch.id} has ended; it cannot be canceled.")
            self.cancel(batch)
            return reply(self.shown(batch))
        if route == ("GET", 3) and segments[2] == "results":
            return await self.results(self.get(segments[1]), request)
        raise Refused(404, "not_found", f"Not found: {request.method} {request.path}")

    def create(self, raw: bytes, request: web.BaseRequest) -> web.Response:
        self.fails_upload()
        most, bytes_ = self.limits(self.teacher.settings)
        if len(raw) > bytes_:
            raise Refused(413, "request_too_large", "Request exceeds the maximum size")
        lines = requests(raw)
        if most is not None and len(lines) > most:
            raise Refused(400, "invalid_request", f"requests: List should have at most {most} items, not {len(lines)}")
        if self.teacher.settings.batch_fates[:1] == ["token_limit"]:
            self.teacher.settings.batch_fates.pop(0)
            raise Refused(429, "rate_limit", "Number of batch requests in the processing queue would exceed the limit.")
        more = {"host": request.host, "lines": lines, "data": b""}
        return reply(self.shown(self.start(ANTHROPIC, f"msgbatch_{uuid4().hex[:24]}", more)))

    async def read(self, batch: Batch) -> list[dict[str, Any]]:
        batch.lines = batch.more.pop("lines")
        return []

    def written(self, batch: Batch, line: Line, fate: str) -> Any:
        if batch.fate == "failed":
            raise Refused(400, "invalid_request", "The simulated service refuses every request of this batch.")
        return super().written(batch, line, fate)

    def answered(self, line: Line, body: dict[str, Any]) -> bytes:
        return result(line, {"type": "succeeded", "message": body})

    def refused(self, batch: Batch, line: Line, error: Refused) -> bytes:
        return result(line, {"type": "errored", "error": batch.wire.error(error)})

    def unreached(self, line: Line, end: str) -> bytes:
        return result(line, {"type": ENDS[end]})

    def keep(self, batch: Batch, end: str) -> None:  # noqa: ARG002
        batch.more["data"] = b"".join(kept.data + b"\n" for kept in batch.results)

    async def results(self, batch: Batch, request: web.BaseRequest) -> web.StreamResponse:
        if batch.status not in ENDED:
            raise Refused(404, "not_found", f"Batch {batch.id} has no results yet: it is still being processed.")
        breaks, batch.breaks = batch.breaks > 0, max(0, batch.breaks - 1)
        return await sent(batch.more["data"], request, breaks=breaks)

    def delete(self, batch: Batch) -> web.Response:
        if batch.status not in ENDED:
            raise Refused(400, "invalid_request", f"Batch {batch.id} is still being processed; cancel it first.")
        del self.by_id[batch.id]
        return reply({"id": batch.id, "type": "message_batch_deleted"})

    def page(self, query: Any) -> dict[str, Any]:
        """A page of the batches, newest first: those next to the one named by after_id or before_id."""
        limit = query.get("limit", str(PAGE))
        if not limit.isdecimal() or not 1 <= int(limit) <= LONGEST:
            raise Refused(400, "invalid_request", f"limit: a whole number from 1 to {LONGEST}")
        newest_first, most = list(self.by_id.values())[::-1], int(limit)
        ids = [batch.id for batch in newest_first]
        for name in ("after_id", "before_id"):
            if name in query and query[name] not in ids:
                raise Refused(400, "invalid_request", f"{name}: no batch has the id {query[name]}")
        if "before_id" in query:
            end = ids.index(query["before_id"])
            start = max(0, end - most)
            more = start > 0
        else:
            start = ids.index(query["after_id"]) + 1 if "after_id" in query else 0
            end = start + most
            more = end < len(ids)
        shown = [self.shown(batch) for batch in newest_first[start:end]]
        ends = (
            {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
        )
        return {"data": shown, "has_more": more, **ends}

    def shown(self, batch: Batch) -> dict[str, Any]:
        """Anthropic's object."""
        ended, times = batch.status in ENDED, batch.times
        total = batch.total or len(batch.more.get("lines", ()))
        counts = dict.fromkeys(("processing", *ENDS.values()), 0) | {"processing": 0 if ended else total}
        if ended:
            counts |= {ENDS[end]: count for end, count in batch.counts.items()}
            counts["errored"] += total - sum(counts.values())  # those that are in no line
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "canceling" if "cancelling" in times else "in_progress",
            "request_counts": counts,
            "created_at": stamp(batch.created),
            "ended_at": stamp(times[batch.status]) if ended else None,
            "expires_at": stamp(batch.created + DAY),
            "archived_at": None,
            "cancel_initiated_at": stamp(times["cancelling"]) if "cancelling" in times else None,
            "results_url": f"http://{batch.more['host']}{BASE}batches/{batch.id}/results" if ended else None,
        }


def requests(raw: bytes) -> list[Line]:
    """The requests of a batch to be created. Raises Refused unless each has a custom_id of its own, and params."""
    try:
        body = orjson.loads(raw)
        listed = body["requests"]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(400, "invalid_request", f"{type(error).__name__}: {error}") from None
    if not isinstance(listed, list) or not listed:
        raise Refused(400, "invalid_request", "requests: a list of one or more requests")
    names: set[str] = set()
    lines: list[Line] = []
    for number, asked in enumerate(listed):
        name, params = (asked.get("custom_id"), asked.get("params")) if isinstance(asked, dict) else (None, None)
        if not isinstance(name, str) or not CUSTOM_ID.fullmatch(name):
            text = f"requests.{number}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
            raise Refused(400, "invalid_request", text)
        if name in names:
            raise Refused(400, "invalid_request", f"requests: custom_id '{name}' is used more than once")
        if not isinstance(params, dict):
            raise Refused(400, "invalid_request", f"requests.{number}.params: Field required")
        names.add(name)
        lines.append(Line(name, params, number))
    return lines


def result(line: Line, what: dict[str, Any]) -> bytes:
    return orjson.dumps({"custom_id": line.custom_id, "result": what})
