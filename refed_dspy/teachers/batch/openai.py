"""The Files and Batches API of OpenAI, Azure OpenAI, and all servers that have the same."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aiohttp import FormData

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.teachers.batch.http import HttpService, UploadedFile
from refed_dspy.teachers.batch.service import AnswerLine, PendingRequest, ServiceBatch
from refed_dspy.teachers.rate_limits import PATIENCE
from refed_dspy.teachers.route import Route

if TYPE_CHECKING:
    from openai.types import Batch

NONCE = "refed_batch"
"""The key in a batch's metadata under which its nonce is, by which it is found."""
WINDOW = "24h"
"""The one completion window that the services know."""
PROCESSING = {"pending", "running", "notRunning"}
"""Azure's statuses of a file that is not processed yet."""
FULL = "token_limit_exceeded"
"""The error code of a batch with more tokens than may wait there at once."""
PAGE = 100
LOOKS = 5
"""Further looks at a completed batch that names no file: the names may come a little after the status."""


class OpenAIService(HttpService):
    """Files of requests and batches of them, which are found by their metadata."""

    def __init__(self, config: TeacherConfig, route: Route, patience: float = PATIENCE) -> None:
        key, azure = route.key() or "none", str(config.model).startswith("azure/")
        dated = azure and config.api_version is not None
        auth = ("api-key", key) if dated else ("Authorization", f"Bearer {key}")
        super().__init__(config, route, auth, patience)
        self._base, self._query = route.endpoint, ""
        if azure:
            root = route.endpoint.removesuffix("/openai/v1").removesuffix("/openai")
            self._base = f"{root}/openai" if dated else f"{root}/openai/v1"
            self._query = f"?api-version={quote(str(config.api_version), safe='')}" if dated else ""
        # Azure names the deployment in each line, and the operation without a version.
        self._path = "/chat/completions" if azure else "/v1/chat/completions"
        self._unnamed = Counter[str]()

    def line(self, number: int, request: Any) -> bytes:
        return chat_line(number, self._path, self.model, request.body)

    async def _upload(self, requests: Sequence[PendingRequest]) -> UploadedFile:
        with tempfile.TemporaryFile() as lines:
            lines.writelines(request.line for request in requests)
            size = lines.tell()
            lines.seek(0)
            form = FormData({"purpose": "batch"})
            form.add_field("file", lines, filename="requests.jsonl", content_type="application/octet-stream")
            return _file(await self._json("POST", self._address("files"), form, size))

    async def _uploaded(self, name: str) -> UploadedFile:
        return _file(await self._json("GET", self._address(f"files/{quote(name)}")))

    async def _make(self, prepared: str, requests: Sequence[PendingRequest], nonce: str) -> ServiceBatch:  # noqa: ARG002
        batch = {
            "input_file_id": prepared,
            "endpoint": self._path,
            "completion_window": WINDOW,
            "metadata": {NONCE: nonce},
        }
        return self._told(await self._json("POST", self._address("batches"), batch))

    async def _listed(self) -> AsyncIterator[tuple[float, ServiceBatch, set[str]]]:
        after, more = "", True
        while more:
            begins = "&" if self._query else "?"
            page = await self._json("GET", f"{self._address('batches')}{begins}limit={PAGE}{after}")
            batches = page.get("data") or []
            for batch in batches:
                found_by = {str((batch.get("metadata") or {}).get(NONCE, "")), str(batch.get("input_file_id"))}
                yield float(batch.get("created_at") or 0), self._told(batch), found_by
            more = bool(page.get("has_more") and batches)
            after = f"&after={quote(str(batches[-1]['id']), safe='')}" if more else ""

    async def _looked(self, name: str) -> ServiceBatch:
        told = self._told(await self._json("GET", self._address(f"batches/{quote(name)}")))
        self._unnamed[name] += not told.whole
        return told

    def _told(self, given: Mapping[str, Any]) -> ServiceBatch:
        from openai.types import Batch

        batch = Batch.construct(**given)  # as the package reads it: whatever is left out is None
        counts, failures = batch.request_counts, (batch.errors.data if batch.errors else None) or []
        first = failures[0] if failures else None
        code = first.code if first else None
        line = f" (line {first.line})" if first and first.line else ""
        return ServiceBatch(
            name=batch.id,
            status=batch.status,
            total=counts.total if counts else 0,
            done=counts.completed if counts else 0,
            files=tuple(file for file in (batch.output_file_id, batch.error_file_id) if file),
            whole=not _lacks_file(batch) or self._unnamed[batch.id] > LOOKS,
            why=f"{(first and first.message) or code or 'no reason given'}{line}",
            no_room=code == FULL,
        )

    def _answers_at(self, file: str) -> str:
        return self._address(f"files/{quote(file)}/content")

    def _address(self, path: str) -> str:
        return f"{self._base}/{path}{self._query}"

    def outcome(self, line: Mapping[str, Any]) -> AnswerLine:
        return chat_outcome(line)


def chat_line(number: int, path: str, model: str, body: bytes) -> bytes:
    """The request of a call as a line of a request file."""
    request = json.loads(body)
    request.setdefault("model", model)  # Azure's dated API has it in the address
    line = {"custom_id": f"call-{number}", "method": "POST", "url": path, "body": request}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def chat_outcome(line: Mapping[str, Any]) -> AnswerLine:
    """What a line of an answer file says."""
    response, error = line.get("response"), line.get("error")
    if isinstance(response, Mapping) and type(response.get("status_code")) is int:
        return AnswerLine(response["status_code"], response.get("body"))
    code = error.get("code") if isinstance(error, Mapping) else None
    return AnswerLine(None, not_executed=code in {"batch_expired", "batch_cancelled"})


def _file(file: Mapping[str, Any]) -> UploadedFile:
    why = str(file.get("status_details") or "no reason") if file.get("status") == "error" else ""
    return UploadedFile(str(file["id"]), file.get("status") in PROCESSING, why)


def _lacks_file(batch: Batch) -> bool:
    """Whether a batch is completed and does not name the file with its answers."""
    if batch.status != "completed" or batch.output_file_id:
        return False
    counts = batch.request_counts
    return not batch.error_file_id or bool(counts is not None and counts.completed)
