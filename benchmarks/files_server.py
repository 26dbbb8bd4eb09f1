"""The Files endpoints of the simulated batch service as OpenAI and Azure serve them; Gemini's are in
`benchmarks.files_gemini`.

Files that clients upload and files that batches write are kept in memory until a reset. On Azure an upload is
`pending` for AZURE_PENDING seconds before it is `processed`; on OpenAI it is processed at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import BodyPartReader, MultipartReader, web

from benchmarks.wires import AZURE_V1, Dropped, OpenAI, Refused, reply

AZURE_PENDING = 0.05  # seconds
PAGE = 20  # entries in a list when the request names no limit


@dataclass
class File:
    """One stored file, processed from `ready` (monotonic clock) on. Its next `breaks` downloads break off."""

    data: bytes
    name: str
    purpose: str
    ready: float = 0.0
    breaks: int = 0
    id: str = field(default_factory=lambda: f"file-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def processed(self) -> bool:
        return time.monotonic() >= self.ready

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's file object."""
        shown = {"object": "file", "id": self.id, "bytes": len(self.data), "created_at": self.created}
        status = "processed" if self.processed() else "pending"
        return shown | {"filename": self.name, "purpose": self.purpose, "status": status, "status_details": None}


class Files:
    """The stored files and the endpoints over them. Raises Refused where the service would refuse."""

    def __init__(self) -> None:
        self.by_id: dict[str, File] = {}

    def add(self, file: File) -> File:
        self.by_id[file.id] = file
        return file

    def get(self, name: str) -> File:
        if name not in self.by_id:
            raise Refused(404, "not_found", f"No such File object: {name}")
        return self.by_id[name]

    async def upload(self, wire: OpenAI, request: web.BaseRequest, most: int) -> File:
        """Store the file of a multipart request. Raises Refused for another body or a file above `most` bytes."""
        if not request.content_type.startswith("multipart/"):
            raise Refused(400, "invalid_request", "A file is sent as multipart/form-data.")
        sent: dict[str, bytes] = {}
        name = ""
        # Not request.multipart(): it takes at most a megabyte.
        async for part in MultipartReader(request.headers, request.content):
            if isinstance(part, BodyPartReader) and part.name is not None:
                name = part.filename or name
                sent[part.name] = bytes(await part.read())
        if "file" not in sent or "purpose" not in sent:
            raise Refused(400, "missing_required_parameter", "'file' and 'purpose' are required.")
        if len(sent["file"]) > most:
            raise Refused(413, "file_too_large", f"The file has {len(sent['file'])} bytes; {most} are allowed.")
        ready = time.monotonic() + (AZURE_PENDING if isinstance(wire, type(AZURE_V1)) else 0.0)
        return self.add(File(sent["file"], name, sent["purpose"].decode(), ready))

    async def handle(self, segments: list[str], request: web.BaseRequest) -> web.StreamResponse:
        """Answer everything but an upload: list, look up, download, delete."""
        method, depth = request.method, len(segments)
        if method == "GET" and depth == 1:
            purpose = request.query.get("purpose")
            kept = [file for file in self.by_id.values() if purpose in (None, file.purpose)]
            return page(kept, request, File.as_dict)
        if method == "GET" and depth == 2:
            return reply(self.get(segments[1]).as_dict())
        if method == "DELETE" and depth == 2:
            del self.by_id[self.get(segments[1]).id]
            return reply({"id": segments[1], "object": "file", "deleted": True})
        if method == "GET" and depth == 3 and segments[2] == "content":
            return await self.download(self.get(segments[1]), request)
        raise Refused(404, "unknown_url", f"Unknown request URL: {request.method} {request.path}")

    async def download(self, file: File, request: web.BaseRequest) -> web.StreamResponse:
        breaks, file.breaks = file.breaks > 0, max(0, file.breaks - 1)
        return await sent(file.data, request, breaks=breaks)


async def sent(data: bytes, request: web.BaseRequest, *, breaks: bool) -> web.StreamResponse:
    """A download. One that breaks off gives half of the data and raises Dropped."""
    if not breaks:
        return web.Response(body=data, content_type="application/octet-stream")
    broken = web.StreamResponse(headers={"Content-Length": str(len(data))})
    await broken.prepare(request)
    await broken.write(data[: len(data) // 2])
    raise Dropped


def page(objects: Iterable[Any], request: web.BaseRequest, show: Callable[[Any], dict[str, Any]]) -> web.Response:
    """A page of the stored objects, newest first: `limit` of them after the one with the id `after`."""
    try:
        limit = int(request.query.get("limit", PAGE))
    except ValueError:
        limit = 0
    if not 1 <= limit <= 10_000:
        raise Refused(400, "invalid_request", "limit: a whole number from 1 to 10000")
    newest_first = list(objects)[::-1]
    after = request.query.get("after")
    if after is not None:
        places = [place for place, stored in enumerate(newest_first) if stored.id == after]
        if not places:
            raise Refused(400, "invalid_request", f"after: no object has the id {after}")
        newest_first = newest_first[places[0] + 1 :]
    shown = [show(stored) for stored in newest_first[:limit]]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return reply({"object": "list", "data": shown, **ends, "has_more": len(newest_first) > limit})
