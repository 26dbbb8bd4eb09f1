"""The Files and Batches API of OpenAI, Azure OpenAI and all servers that have the same, by the `openai` package."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import one_line
from refed_dspy.programs.lm_errors import NotAnApi
from refed_dspy.teachers.batch.http import HttpService, StatusError, UploadedFile
from refed_dspy.teachers.batch.service import Outcome, PendingRequest, ServiceBatch
from refed_dspy.teachers.rate_limits import PATIENCE
from refed_dspy.teachers.route import Route

NONCE = "refed_batch"
"""The key in a batch's metadata under which its nonce is, by which it is found."""
WINDOW: Any = "24h"
"""The one completion window that the services know."""
PROCESSING = {"pending", "running", "notRunning"}
"""Azure's statuses of a file that is not processed yet."""
FULL = "token_limit_exceeded"
"""The error code of a batch with more tokens than may wait there at once."""
LOOKS = 5
"""Further looks at a completed batch that names no file: the names may come a little after the status."""


class OpenAIService(HttpService):
    """Files of requests and batches of them, which are found by their metadata."""

    def __init__(self, config: TeacherConfig, route: Route, patience: float = PATIENCE) -> None:
        key, azure = route.key() or "none", str(config.model).startswith("azure/")
        dated = azure and config.api_version is not None
        auth = ("api-key", key) if dated else ("Authorization", f"Bearer {key}")
        super().__init__(config, route, auth, patience)
        # Azure names the deployment in each line, and the operation without a version.
        self._path: Any = "/chat/completions" if azure else "/v1/chat/completions"
        self._client, self._version = _client(config, route, key, self._http), config.api_version
        self._unnamed = Counter[str]()

    def line(self, number: int, request: Any) -> bytes:
        return chat_line(number, self._path, self.model, request.body)

    async def _upload(self, requests: Sequence[PendingRequest]) -> UploadedFile:
        with tempfile.TemporaryFile() as lines, _plain_errors(self.endpoint):
            lines.writelines(request.line for request in requests)
            lines.seek(0)
            return self._file(await self._client.files.create(file=("requests.jsonl", lines), purpose="batch"))

    async def _uploaded(self, name: str) -> UploadedFile:
        with _plain_errors(self.endpoint):
            return self._file(await self._client.files.retrieve(name))

    async def _make(self, prepared: str, requests: Sequence[PendingRequest], nonce: str) -> ServiceBatch:  # noqa: ARG002
        with _plain_errors(self.endpoint):
            made = await self._client.batches.create(
                input_file_id=prepared, endpoint=self._path, completion_window=WINDOW, metadata={NONCE: nonce}
            )
            return self._told(made)

    async def _listed(self) -> AsyncIterator[tuple[float, ServiceBatch, set[str]]]:
        with _plain_errors(self.endpoint):
            async for batch in self._client.batches.list(limit=100):
                found_by = {(batch.metadata or {}).get(NONCE, ""), batch.input_file_id}
                yield batch.created_at, self._told(batch), found_by

    async def _looked(self, name: str) -> ServiceBatch:
        with _plain_errors(self.endpoint):
            batch = await self._client.batches.retrieve(name)
        told = self._told(batch)
        self._unnamed[name] += not told.whole
        return told

    def _file(self, file: Any) -> UploadedFile:
        self._check(file)
        why = str(file.status_details or "no reason") if file.status == "error" else ""
        return UploadedFile(str(file.id), file.status in PROCESSING, why)

    def _check(self, answer: Any) -> None:
        """Raises NotAnApi for the text that the package returns of a web page."""
        if isinstance(answer, str):
            raise NotAnApi(f"{self.endpoint} gave an answer that is not an API's: a web page")

    def _told(self, batch: Any) -> ServiceBatch:
        self._check(batch)
        counts, failures = batch.request_counts, (batch.errors.data if batch.errors else None) or []
        first = failures[0] if failures else None
        code = getattr(first, "code", None)
        line = f" (line {first.line})" if first is not None and first.line else ""
        return ServiceBatch(
            name=str(batch.id),
            status=str(batch.status),
            total=counts.total if counts else 0,
            done=counts.completed if counts else 0,
            files=tuple(file for file in (batch.output_file_id, batch.error_file_id) if file),
            whole=not _lacks_file(batch) or self._unnamed[str(batch.id)] > LOOKS,
            why=f"{getattr(first, 'message', None) or code or 'no reason given'}{line}",
            no_room=code == FULL,
        )

    def _address(self, file: str) -> str:
        dated = f"?api-version={self._version}" if self._version else ""
        return f"{self._client.base_url}files/{file}/content{dated}"

    def outcome(self, line: Mapping[str, Any]) -> Outcome:
        return chat_outcome(line)


def chat_line(number: int, path: str, model: str, body: bytes) -> bytes:
    """The request of a call as a line of a request file."""
    request = json.loads(body)
    request.setdefault("model", model)  # Azure's dated API has it in the address
    line = {"custom_id": f"call-{number}", "method": "POST", "url": path, "body": request}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def chat_outcome(line: Mapping[str, Any]) -> Outcome:
    """What a line of an answer file says."""
    response, error = line.get("response"), line.get("error")
    if isinstance(response, Mapping) and type(response.get("status_code")) is int:
        return Outcome(response["status_code"], response.get("body"))
    code = error.get("code") if isinstance(error, Mapping) else None
    return Outcome(None, not_executed=code in {"batch_expired", "batch_cancelled"})


def _client(config: TeacherConfig, route: Route, key: str, http: Any) -> Any:
    """The `openai` client. Its own retries are off: they do not know that making a batch twice costs money."""
    import openai

    settings: dict[str, Any] = {"api_key": key, "max_retries": 0, "http_client": http}
    if not str(config.model).startswith("azure/"):
        return openai.AsyncOpenAI(base_url=route.endpoint, **settings)
    root = route.endpoint.removesuffix("/openai/v1").removesuffix("/openai")
    if config.api_version is None:
        return openai.AsyncOpenAI(base_url=f"{root}/openai/v1", **settings)
    return openai.AsyncAzureOpenAI(azure_endpoint=root, api_version=config.api_version, **settings)


@contextmanager
def _plain_errors(endpoint: str) -> Iterator[None]:
    """Raise the package's errors as `http` knows them."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        code = f"{error.code} {error.type}"
        raise StatusError(error.status_code, str(body.get("message") or error.message), code) from None
    except openai.APIError as error:
        if error.__cause__ is not None:
            raise error.__cause__ from None
        raise NotAnApi(f"{endpoint} gave an answer that is not an API's: {one_line(error.message, 150)}") from None


def _lacks_file(batch: Any) -> bool:
    """Whether a batch is completed and does not name the file with its answers."""
    if batch.status != "completed" or batch.output_file_id:
        return False
    counts = batch.request_counts
    return not batch.error_file_id or bool(counts is not None and counts.completed)
