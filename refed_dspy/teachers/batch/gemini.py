"""The batches of the Gemini API: requests and answers are files there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.teachers.batch.http import HttpService, UploadedFile
from refed_dspy.teachers.batch.service import CANCELLED, AnswerLine, PendingRequest, ServiceBatch, joined
from refed_dspy.teachers.rate_limits import PATIENCE
from refed_dspy.teachers.route import Route

PAGE = 100
_STATUS = {
    "BATCH_STATE_SUCCEEDED": "completed",
    "BATCH_STATE_FAILED": "failed",
    "BATCH_STATE_CANCELLED": CANCELLED,
    "BATCH_STATE_EXPIRED": "expired",
}
_CANCELLED, _EXHAUSTED = 1, 8
"""Codes of google.rpc."""
_HTTP = {3: 400, 4: 504, 5: 404, 7: 403, _EXHAUSTED: 429, 9: 400, 11: 400, 14: 503, 16: 401}
"""google.rpc's code → the HTTP status that an interactive request would have had."""


class GeminiService(HttpService):
    """Batches of one model, whose display name is the nonce."""

    most_requests, most_bytes = 1_000_000, 2_000_000_000

    def __init__(self, config: TeacherConfig, route: Route, patience: float = PATIENCE) -> None:
        super().__init__(config, route, ("x-goog-api-key", route.key() or "none"), patience)
        self._origin, _, self._version = route.endpoint.rpartition("/")

    def line(self, number: int, request: Any) -> bytes:
        return b'{"key":"call-%d","request":%b}\n' % (number, request.body)

    async def _upload(self, requests: Sequence[PendingRequest]) -> UploadedFile:
        size = sum(len(request.line) for request in requests)
        begin = {"x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
        begin |= {"x-goog-upload-header-content-length": str(size), "x-goog-upload-header-content-type": "text/plain"}
        async with self._exchange("POST", f"{self._origin}/upload/{self._version}/files", headers=begin) as (reply, _):
            there = urlsplit({name.lower(): value for name, value in reply.headers}.get("x-goog-upload-url", ""))
        place = urlsplit(self._origin)._replace(path=there.path, query=there.query)  # no other host gets the key
        whole = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0", "content-length": str(size)}
        return _file((await self._json("POST", place.geturl(), joined(requests), size, **whole))["file"])

    async def _uploaded(self, name: str) -> UploadedFile:
        return _file(await self._json("GET", f"{self.endpoint}/{quote(name)}"))

    async def _make(self, prepared: str, requests: Sequence[PendingRequest], nonce: str) -> ServiceBatch:  # noqa: ARG002
        batch = {"displayName": nonce, "inputConfig": {"fileName": prepared}}
        address = f"{self.endpoint}/models/{quote(self.model)}:batchGenerateContent"
        return _told(await self._json("POST", address, {"batch": batch}))

    async def _listed(self) -> AsyncIterator[tuple[float, ServiceBatch, set[str]]]:
        after = ""
        while True:
            page = await self._json("GET", f"{self.endpoint}/batches?pageSize={PAGE}{after}")
            for batch in page.get("operations") or ():
                about = batch["metadata"]
                created = datetime.fromisoformat(about["createTime"]).timestamp()
                yield created, _told(batch), {str(about.get("displayName"))}
            if not page.get("nextPageToken"):
                return
            after = f"&pageToken={quote(page['nextPageToken'], safe='')}"

    async def _looked(self, name: str) -> ServiceBatch:
        return _told(await self._json("GET", f"{self.endpoint}/{quote(name)}"))

    def _answers_at(self, file: str) -> str:
        return f"{self._origin}/download/{self._version}/{quote(file)}:download?alt=media"

    def outcome(self, line: Mapping[str, Any]) -> AnswerLine:
        if isinstance(response := line.get("response"), Mapping):
            return AnswerLine(200, response)
        error = line.get("error", line.get("status"))
        code = error.get("code") if isinstance(error, Mapping) else None
        if type(code) is not int:
            return AnswerLine(None)
        if code == _CANCELLED:
            return AnswerLine(None, not_executed=True)
        return AnswerLine(code if code >= 100 else _HTTP.get(code, 500), {"error": error})


def _file(file: Mapping[str, Any]) -> UploadedFile:
    why = str((file.get("error") or {}).get("message") or "no reason given") if file.get("state") == "FAILED" else ""
    return UploadedFile(str(file["name"]), file.get("state") == "PROCESSING", why)


def _told(batch: Mapping[str, Any]) -> ServiceBatch:
    about, error = batch.get("metadata") or {}, batch.get("error") or {}
    stats = about.get("batchStats") or {}
    counts = [int(stats.get(f"{kind}Count") or 0) for kind in ("request", "successfulRequest", "failedRequest")]
    total, succeeded, failed = counts
    state = str(about.get("state"))
    status = _STATUS.get(state, state)
    file = ((batch.get("response") or {}).get("responsesFile")) or (about.get("output") or {}).get("responsesFile")
    return ServiceBatch(
        name=str(batch["name"]),
        status=status,
        total=total,
        done=succeeded + failed,
        files=(str(file),) if file else (),
        withheld=status in {"expired", CANCELLED} and not file and succeeded > 0,
        why=str(error.get("message") or "no reason given"),
        no_room=error.get("code") == _EXHAUSTED,
    )
