"""The files of the simulated batch service, as OpenAI's and Azure's Files endpoints keep them.

Files are kept in memory until a reset: those that clients upload and those that batches write. Azure's are
`pending` for AZURE_PENDING seconds after an upload and `processed` then; OpenAI's are processed at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import BodyPartReader, MultipartReader, web

from benchmarks.wires import AZURE_V1, Dropped, OpenAI, Refused, reply

AZURE_PENDING = 0.05  # seconds
PAGE = 20  # entries of a list when no limit is asked for


@dataclass
class File:
    """One stored file; `ready` is when it is processed, `breaks` the downloads that are to break off."""

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
    """The store, and the answers to what is asked of it; Refused where the service would refuse."""

    def __init__(self) -> None:
        self.known: dict[str, File] = {}

    def add(self, file: File) -> File:
        self.known[file.id] = file
        return file

    def get(self, name: str) -> File:
        if name not in self.known:
            raise Refused(404, "not_found", f"No such File object: {name}")
        return self.known[name]

    async def upload(self, wire: OpenAI, request: web.BaseRequest, most: int) -> File:
        """The file of a multipart request, stored; Refused for another body or one above `most` bytes."""
        if not request.content_type.startswith("multipart/"):
            raise Refused(400, "invalid_request", "A file is sent as multipart/form-data.")
        sent: dict[str, bytes] = {}
        name = ""
        # Not request.multipart(), which takes a megabyte at most.
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

    async def handle(self, parts: list[str], request: web.BaseRequest) -> web.StreamResponse:
        """Answer everything but an upload: list, look up, download, delete."""
        route = (request.method, *parts[1:2], *parts[2:])
        if request.method == "GET" and len(parts) == 1:
            purpose = request.query.get("purpose")
            return page([one for one in self.known.values() if purpose in (None, one.purpose)], request)
        if len(parts) == 2 and route[0] == "GET":
            return reply(self.get(parts[1]).as_dict())
        if len(parts) == 2 and route[0] == "DELETE":
            del self.known[self.get(parts[1]).id]
            return reply({"id": parts[1], "object": "file", "deleted": True})
        if len(parts) == 3 and parts[2] == "content" and route[0] == "GET":
            return await self.download(self.get(parts[1]), request)
        raise Refused(404, "unknown_url", f"Unknown request URL: {request.method} {request.path}")

    async def download(self, file: File, request: web.BaseRequest) -> web.StreamResponse:
        if not file.breaks:
            return web.Response(body=file.data, content_type="application/octet-stream")
        file.breaks -= 1
        broken = web.StreamResponse(headers={"Content-Length": str(len(file.data))})
        await broken.prepare(request)
        await broken.write(file.data[: len(file.data) // 2])
        raise Dropped


def page(known: Iterable[Any], request: web.BaseRequest) -> web.Response:
    """A list of stored objects, newest first: `limit` of them that follow the one with the id `after`."""
    try:
        limit = int(request.query.get("limit", PAGE))
    except ValueError:
        limit = 0
    if not 1 <= limit <= 10_000:
        raise Refused(400, "invalid_request", "limit: a whole number from 1 to 10000")
    found = list(known)[::-1]
    after = request.query.get("after")
    if after is not None:
        places = [place for place, one in enumerate(found) if one.id == after]
        if not places:
            raise Refused(400, "invalid_request", f"after: no object has the id {after}")
        found = found[places[0] + 1 :]
    shown = [one.as_dict() for one in found[:limit]]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return reply({"object": "list", "data": shown, **ends, "has_more": len(found) > limit})
