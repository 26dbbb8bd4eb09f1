"""Anthropic's Message Batches API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import quote

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.teachers.batch.http import HttpService, UploadedFile
from refed_dspy.teachers.batch.service import (
    CANCELLED,
    ENDED,
    AnswerLine,
    Lines,
    PendingRequest,
    ServiceBatch,
    joined,
)
from refed_dspy.teachers.rate_limits import PATIENCE
from refed_dspy.teachers.route import Route

VERSION = "2023-06-01"
"""The one version of the API."""
PAGE = 100
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""Kind of error → the HTTP status that an interactive request would have had."""


class AnthropicService(HttpService):
    """Batches of messages. They have no label: a batch is known by the nonce in the ids of its requests, which only its
    answers tell. So a search waits for the end of each batch that it may be."""

    most_requests, most_bytes = 100_000, 250_000_000  # of 256 MB, since ids come on top

    def __init__(self, config: TeacherConfig, route: Route, patience: float = PATIENCE) -> None:
        super().__init__(config, route, ("x-api-key", route.key() or "none"), patience)
        self._base = f"{route.endpoint}/messages/batches"
        self._headers["anthropic-version"] = VERSION
        self._nonces = dict[str, str]()
        """Name → nonce of the batches that were looked into; "" where it is none of ours."""

    def line(self, number: int, request: Any) -> bytes:
        betas = {name.lower(): value for name, value in request.headers}.get("anthropic-beta")
        if betas:  # as for an interactive request
            self._headers["anthropic-beta"] = betas
        return b'-%d","params":%b}' % (number, request.body)

    async def _upload(self, requests: Sequence[PendingRequest]) -> UploadedFile:  # noqa: ARG002
        """Nothing, but an endpoint that never answered must do so before it is asked for what costs money."""
        if not self.reached:
            await self._first()
        return UploadedFile("")

    async def _make(self, prepared: str, requests: Sequence[PendingRequest], nonce: str) -> ServiceBatch:  # noqa: ARG002
        opening = b'{"custom_id":"' + nonce.encode()
        size = sum(len(opening) + len(request.line) + 1 for request in requests) + 14

        async def body() -> AsyncIterator[bytes]:
            before = b'{"requests":['
            async for line in joined(requests, opening):
                yield before + line
                before = b","
            yield b"]}"

        headers = {"content-type": "application/json", "content-length": str(size)}
        return _told(await self._json("POST", self._base, body(), size, **headers))

    async def _listed(self) -> AsyncIterator[tuple[float, ServiceBatch, set[str]]]:
        after = ""
        while True:
            page = await self._json("GET", f"{self._base}?limit={PAGE}{after}")
            for batch in page.get("data") or ():
                yield datetime.fromisoformat(batch["created_at"]).timestamp(), _told(batch), set()
            if not page.get("has_more") or not page.get("last_id"):
                return
            after = f"&after_id={quote(page['last_id'])}"

    async def _is_it(self, batch: ServiceBatch, found_by: set[str], wanted: set[str], requests: int) -> bool | None:  # noqa: ARG002
        if batch.total != requests or not batch.files:
            return False
        if batch.name not in self._nonces:
            if batch.status not in ENDED:
                return None
            await self.read(batch.name, requests, partial(self._note, batch.name))
        return self._nonces[batch.name] in wanted - {""}

    async def _note(self, name: str, lines: Lines) -> None:
        """Note the nonce of the batch with these answers."""
        first: dict[str, Any] = await anext(lines, {})
        self._nonces[name] = str(first.get("custom_id", "")).partition("-")[0]

    async def _looked(self, name: str) -> ServiceBatch:
        return _told(await self._json("GET", f"{self._base}/{quote(name)}"))

    def _answers_at(self, file: str) -> str:
        return f"{self._base}/{quote(file)}/results"  # not where an answer says: the key goes nowhere else

    def outcome(self, line: Mapping[str, Any]) -> AnswerLine:
        result = line.get("result")
        if not isinstance(result, Mapping):
            return AnswerLine(None)
        if result.get("type") == "succeeded":
            return AnswerLine(200, result.get("message"))
        if result.get("type") == "errored":
            return _errored(result.get("error"))
        return AnswerLine(None, not_executed=result.get("type") in {"canceled", "expired"})


def _errored(error: Any) -> AnswerLine:
    """An error as an interactive request would have had it."""
    inner = error.get("error") if isinstance(error, Mapping) else None
    kind = inner.get("type") if isinstance(inner, Mapping) else None
    return AnswerLine(_STATUS.get(str(kind), 500), error)


def _told(batch: Mapping[str, Any]) -> ServiceBatch:
    counts = {name: int(count) for name, count in batch["request_counts"].items()}
    status = str(batch["processing_status"])
    if status == "ended":
        status = CANCELLED if batch.get("cancel_initiated_at") else "expired" if counts.get("expired") else "completed"
    total, name = sum(counts.values()), str(batch["id"])
    files = () if batch.get("archived_at") else (name,)  # after 29 days the results are gone
    return ServiceBatch(name, status, total, total - counts.get("processing", 0), files)
