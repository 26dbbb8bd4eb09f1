"""The Files endpoints of the simulated batch service as Gemini serves them: resumable uploads, downloads of results.

Files are kept in memory until a reset. An upload is PROCESSING for GEMINI_PENDING seconds before it is ACTIVE. Only
files that a batch has written can be downloaded.
"""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import web

from benchmarks.batch_life import DAY, stamp
from benchmarks.files_server import sent
from benchmarks.wires import Refused, reply
from benchmarks.wires_gemini import camel

GEMINI_PENDING = 0.05  # seconds
PAGE, LONGEST = 10, 100  # files in a list without a page size, and the most
UPLOAD = "/upload/v1beta/files"


@dataclass
class GeminiFile:
    """One stored file, active from `ready` (monotonic clock) on; `generated` by a batch, or else uploaded. Its next
    `breaks` downloads break off."""

    data: bytes
    host: str
    id: str = field(default_factory=lambda: uuid4().hex[:12])
    title: str = ""
    mime: str = "application/jsonl"
    generated: bool = False
    ready: float = 0.0
    breaks: int = 0
    created: float = field(default_factory=time.time)

    def active(self) -> bool:
        return time.monotonic() >= self.ready

    def as_dict(self) -> dict[str, Any]:
        """Gemini's file object."""
        made, address = stamp(self.created), f"http://{self.host}/v1beta/files/{self.id}"
        shown = {"name": f"files/{self.id}", "displayName": self.title, "mimeType": self.mime}
        shown |= {"sizeBytes": str(len(self.data)), "createTime": made, "updateTime": made}
        shown |= {"expirationTime": stamp(self.created + 2 * DAY), "uri": address}
        shown |= {"sha256Hash": base64.b64encode(sha256(self.data).hexdigest().encode()).decode()}
        shown |= {"state": "ACTIVE" if self.active() else "PROCESSING"}
        if self.generated:
            return shown | {"source": "GENERATED", "downloadUri": f"{address}:download?alt=media"}
        return shown | {"source": "UPLOADED"}


@dataclass
class Upload:
    """An upload under way, of `size` bytes."""

    title: str
    mime: str
    size: int
    name: str = ""
    data: bytearray = field(default_factory=bytearray)


class GeminiFiles:
    """The stored files and the endpoints over them. Raises Refused where the service would refuse."""

    def __init__(self) -> None:
        self.by_id: dict[str, GeminiFile] = {}
        self.uploads: dict[str, Upload] = {}

    def add(self, file: GeminiFile) -> GeminiFile:
        self.by_id[file.id] = file
        return file

    def get(self, name: str) -> GeminiFile:
        if name not in self.by_id:
            text = f"You do not have permission to access the File {name} or it may not exist."
            raise Refused(403, "permission_denied", text)
        return self.by_id[name]

    async def handle(self, segments: list[str], request: web.BaseRequest) -> web.StreamResponse:
        """Answer everything but an upload: list, look up, download, delete."""
        name, _, method = segments[1].partition(":") if len(segments) == 2 else ("", "", "")
        route = (request.method, method)
        if len(segments) == 1 and request.method == "GET":
            kept, token = page(list(self.by_id.values()), request, PAGE, LONGEST)
            return reply({"files": [file.as_dict() for file in kept]} | token)
        if not name:
            raise Refused(404, "not_found", "Not found.")
        if route == ("GET", ""):
            return reply(self.get(name).as_dict())
        if route == ("DELETE", ""):
            del self.by_id[self.get(name).id]
            return reply({})
        if route == ("GET", "download") and request.query.get("alt") == "media":
            return await self.download(self.get(name), request)
        raise Refused(404, "not_found", "Not found.")

    async def download(self, file: GeminiFile, request: web.BaseRequest) -> web.StreamResponse:
        if not file.generated:
            raise Refused(400, "invalid_argument", f"The file files/{file.id} was uploaded; it cannot be downloaded.")
        breaks, file.breaks = file.breaks > 0, max(0, file.breaks - 1)
        return await sent(file.data, request, breaks=breaks)

    async def begin(self, request: web.BaseRequest, most: int) -> web.Response:
        """Begin a resumable upload. The header X-Goog-Upload-URL of the answer says where its bytes go."""
        headers = request.headers
        asked = (headers.get("X-Goog-Upload-Protocol"), headers.get("X-Goog-Upload-Command"))
        if asked != ("resumable", "start"):
            raise Refused(400, "invalid_argument", "The simulated server takes only resumable uploads.")
        size = headers.get("X-Goog-Upload-Header-Content-Length", "")
        if not size.isdecimal():
            raise Refused(
                400, "invalid_argument", "X-Goog-Upload-Header-Content-Length: the size of the file is needed"
            )
        if int(size) > most:
            raise Refused(400, "invalid_argument", f"The file has {size} bytes; {most} are allowed.")
        try:
            body = orjson.loads(await request.content.read() or b"{}")
            file = {camel(name): value for name, value in body.get("file", {}).items()}
        except (ValueError, AttributeError) as error:
            raise Refused(400, "invalid_argument", f"Invalid JSON payload received. {error}") from None
        mime = headers.get("X-Goog-Upload-Header-Content-Type") or file.get("mimeType") or "application/octet-stream"
        name = str(file.get("name") or "").removeprefix("files/")
        if name in self.by_id:
            raise Refused(409, "already_exists", f"files/{name} is there already.")
        token = uuid4().hex
        self.uploads[token] = Upload(str(file.get("displayName") or ""), mime, int(size), name)
        address = f"http://{request.host}{UPLOAD}?upload_id={token}&upload_protocol=resumable"
        told = {"X-Goog-Upload-URL": address, "X-Goog-Upload-Status": "active"}
        return web.Response(headers=told | {"X-Goog-Upload-Control-URL": address})

    def receive(self, request: web.BaseRequest, raw: bytes) -> web.Response:
        """Take the next bytes of an upload; the last ones store the file."""
        token, commands = request.query["upload_id"], commands_of(request)
        upload = self.uploads.get(token)
        if upload is None:
            raise Refused(404, "not_found", "There is no such upload.")
        if commands == {"query"}:
            told = {"X-Goog-Upload-Status": "active", "X-Goog-Upload-Size-Received": str(len(upload.data))}
            return web.Response(headers=told)
        if not commands or not commands <= {"upload", "finalize"}:
            raise Refused(400, "invalid_argument", f"X-Goog-Upload-Command: {', '.join(sorted(commands))} is not one")
        if "upload" in commands:
            offset = request.headers.get("X-Goog-Upload-Offset", "")
            if offset != str(len(upload.data)):
                text = f"X-Goog-Upload-Offset is {offset or 'missing'}; {len(upload.data)} bytes are here"
                raise Refused(400, "invalid_argument", text)
            upload.data += raw
        if "finalize" not in commands:
            return web.Response(headers={"X-Goog-Upload-Status": "active"})
        if len(upload.data) != upload.size:
            data, upload.data = len(upload.data), bytearray()
            raise Refused(400, "invalid_argument", f"{upload.size} bytes were promised, {data} have come")
        del self.uploads[token]
        file = GeminiFile(bytes(upload.data), request.host, title=upload.title, mime=upload.mime)
        file.id, file.ready = upload.name or file.id, time.monotonic() + GEMINI_PENDING
        return reply({"file": self.add(file).as_dict()}, headers={"X-Goog-Upload-Status": "final"})


def commands_of(request: web.BaseRequest) -> set[str]:
    """What a request to an upload's address asks for: upload, finalize, both, or query."""
    return {part.strip() for part in request.headers.get("X-Goog-Upload-Command", "").split(",")}


def page(stored: list[Any], request: web.BaseRequest, usual: int, most: int) -> tuple[list[Any], dict[str, str]]:
    """A page of the stored objects, newest first, and the token of the next one, where there is one."""
    size = request.query.get("pageSize", "") or "0"
    if not size.isdecimal():
        raise Refused(400, "invalid_argument", f"Invalid value at 'page_size' (TYPE_INT32), \"{size}\"")
    many = min(int(size) or usual, most)
    newest_first, token = stored[::-1], request.query.get("pageToken")
    places = [place for place, one in enumerate(newest_first) if one.id == token]
    if token and not places:
        raise Refused(400, "invalid_argument", "Invalid page token.")
    start = places[0] + 1 if places else 0
    kept = newest_first[start : start + many]
    return kept, {"nextPageToken": kept[-1].id} if start + many < len(newest_first) else {}
