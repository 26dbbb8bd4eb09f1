"""A provider's Files and Batches API, through the `openai` package: OpenAI, Azure OpenAI, and compatible services.

It keeps no state, and every method may be called again after a kill: only `create` makes something that costs money,
and what it made is found again by its nonce.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import IO, Any, TypeVar

import httpx
from dspy.lm15 import LM15Error
from dspy.utils.exceptions import LMAuthError, LMBillingError, LMError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from refed_dspy.config.keys import without_keys
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.connections import AnswerTooLong
from refed_dspy.errors import one_line
from refed_dspy.programs.lm_errors import BatchOutOfReach, BatchRejected, NoBatches, NotAnApi, NotReached, Redirected
from refed_dspy.teachers.batch.replies import Lines, ServiceTransport, json_lines
from refed_dspy.teachers.rate_limits import LONGEST_PAUSE, PATIENCE
from refed_dspy.teachers.route import Route
from refed_dspy.teachers.transport import longest_answer

NONCE = "refed_batch"
"""The key in a batch's metadata under which its nonce is, by which it is found."""
WINDOW: Any = "24h"
"""The one completion window that the services know."""
EARLIER = 86_400
"""Seconds that the service's clock may be behind this machine's."""
OLDER = 100
"""So many earlier batches in a row end a search: lists are newest first, but not exactly."""
YOUNG, LAG = 60.0, 10.0
"""Seconds: a batch younger than YOUNG may not be listed yet, and is looked for again for LAG."""
MOST_LISTED = 20_000
"""A list of more batches than this does not end."""
PROCESSING = {"pending", "running", "notRunning"}
"""Azure's statuses of a file that is not processed yet."""
T = TypeVar("T")


class BatchService:
    """The batches of one endpoint, for one event loop."""

    def __init__(self, config: TeacherConfig, route: Route, patience: float = PATIENCE) -> None:
        """`patience`: seconds for which an endpoint that does not answer is asked again."""
        self.endpoint, self._patience = route.endpoint, patience
        self._longest, self._retries = longest_answer(config), config.retries
        self._look_again = min(1.0, config.batch.poll)
        self._lag = min(LAG, 10 * config.batch.poll)
        self._client = _client(config, route)
        self.reached = False
        """Whether the endpoint ever answered. Until then nothing is retried while it cannot be reached."""
        # Azure names the deployment in each line, and the operation without a version.
        self.path: Any = "/chat/completions" if _is_azure(config) else "/v1/chat/completions"
        self.model = route.model

    async def upload(self, lines: IO[bytes]) -> str:
        """Upload a file of requests; returns its id. It costs nothing, and may be done twice.

        Raises NoBatches where the endpoint has no Files API, NotReached where it does not answer: nothing was made
        then, so another teacher may be asked.
        """
        try:
            return await self._uploaded(lines)
        except BatchOutOfReach as error:
            raise NotReached(error.message or str(error)) from None

    async def _uploaded(self, lines: IO[bytes]) -> str:

        async def put() -> Any:
            lines.seek(0)
            return await self._client.files.create(file=("requests.jsonl", lines), purpose="batch")

        file = await self._with_retries(put, "files")
        name, since = str(file.id), time.monotonic()
        while (status := getattr(file, "status", None)) in PROCESSING:
            if time.monotonic() - since > self._patience:
                raise BatchOutOfReach(f"{self.endpoint} took too long to process a file; it is still {status}")
            await asyncio.sleep(self._look_again)
            file = await self._with_retries(lambda: self._client.files.retrieve(name), "files")
        if status == "error":
            why = one_line(without_keys(str(file.status_details or "no reason")))
            raise BatchRejected(f"{self.endpoint} refused the file: {why}")
        return name

    async def create(self, file: str, nonce: str, since: float) -> Any:
        """Make a batch of an uploaded file, once: after a lost answer, the batch is looked for before it is made again.

        Only where there certainly is no batch it raises BatchRejected, NoBatches, Redirected, LMAuthError or
        LMBillingError.
        """

        async def make() -> Any:
            tried.append(True)
            batch = await self.find(nonce, since, file) if len(tried) > 1 else None
            return batch or await self._client.batches.create(
                input_file_id=file, endpoint=self.path, completion_window=WINDOW, metadata={NONCE: nonce}
            )

        tried: list[bool] = []
        try:
            return await self._with_retries(make, "batches")
        except (BatchRejected, NoBatches, Redirected, LMAuthError, LMBillingError) as error:
            if len(tried) < 2:
                raise
            raise BatchOutOfReach(f"it is unknown whether {self.endpoint} has the batch: {error}") from None

    async def find(self, nonce: str, since: float, file: str | None = None) -> Any | None:
        """The batch made with `nonce` after `since` (seconds since 1970), or of that file; or None.

        Lists may lag behind. A batch that was begun a moment ago is looked for again: to take it for one that was never
        made would pay for it twice.
        """
        started, young = time.monotonic(), time.time() - since < YOUNG
        while True:
            batch = await self._search(nonce, since, file)
            if batch is not None or not young or time.monotonic() - started >= self._lag:
                return batch
            await asyncio.sleep(self._look_again)

    async def _search(self, nonce: str, since: float, file: str | None) -> Any | None:

        async def look() -> Any | None:
            older = seen = 0
            async for batch in self._client.batches.list(limit=100):
                if (seen := seen + 1) > MOST_LISTED:
                    raise AnswerTooLong("its list of batches does not end")
                if (batch.metadata or {}).get(NONCE) == nonce or (file is not None and batch.input_file_id == file):
                    return batch
                older = older + 1 if batch.created_at < since - EARLIER else 0
                if older >= OLDER:
                    return None
            return None

        return await self._with_retries(look, "batches")

    async def exists(self) -> bool:
        """Whether the endpoint has a Batch API, by the list of its batches, which costs nothing. Raises LMError where
        it does not say."""
        try:
            await self._with_retries(lambda: self._client.batches.list(limit=1), "batches")
        except NoBatches:
            return False
        return True

    async def look(self, name: str) -> Any:
        """The batch as it stands. Raises BatchOutOfReach where the endpoint does not know it."""
        return await self._with_retries(lambda: self._client.batches.retrieve(name), f"batches/{name}")

    async def read(self, file: str, requests: int, deliver: Callable[[Lines], Awaitable[None]]) -> None:
        """Have the lines of an output file delivered as they come; {} for one that is no JSON object. After a lost
        connection they are delivered once more, from the first one on."""

        async def download() -> None:
            async with self._client.files.with_streaming_response.content(file) as response:
                await deliver(json_lines(response.iter_bytes(), self._longest, requests))

        await self._with_retries(download, f"files/{file}/content")

    async def aclose(self) -> None:
        await self._client.close()

    async def _with_retries(self, ask: Callable[[], Awaitable[T]], what: str) -> T:
        """`ask`, retried while the endpoint is out of reach or busy. `what`: its path, for the LMError raised."""
        import openai

        too_slow = itertools.count(1)

        def is_passing(error: BaseException) -> bool:
            if isinstance(error, openai.APITimeoutError | httpx.TimeoutException) and next(too_slow) > self._retries:
                return False
            return self._is_passing(error)

        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_delay(self._patience),
                wait=wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE),
                retry=retry_if_exception(is_passing),
                reraise=True,
            ):
                with attempt:
                    answer = await ask()
                    self.reached = True
                    if isinstance(answer, str):  # what the package returns for a web page
                        raise NotAnApi(f"{self.endpoint} gave an answer that is not an API's ({what})")
                    return answer
        except (openai.OpenAIError, httpx.HTTPError, LM15Error) as error:
            if isinstance(error, openai.APIConnectionError) and not self.reached:
                why = one_line(without_keys(str(error.__cause__ or error)))
                raise NotReached(f"{self.endpoint} cannot be reached: {why}") from None
            raise self._translated(error, what) from None
        raise AssertionError("tenacity ends by returning or raising")

    def _is_passing(self, error: BaseException) -> bool:
        """Whether asking again may help."""
        import openai

        if isinstance(error, openai.APIStatusError):
            self.reached = True
            return not _used_up(error) and (error.status_code in {408, 409, 429} or error.status_code >= 500)
        if isinstance(error.__cause__, LM15Error):  # its reply is too long, or cannot be read
            self.reached = True
            return False
        return self.reached and isinstance(error, openai.APIConnectionError | httpx.HTTPError)

    def _translated(self, error: Exception, what: str) -> LMError:
        """The LMError for an error of the `openai` package at the path `what`."""
        status = getattr(error, "status_code", None)
        if status is not None and 300 <= status < 400:
            return Redirected(self.endpoint, status)
        reason = one_line(without_keys(_message(error)))
        if status in {401, 403}:
            return LMAuthError(reason)
        if _used_up(error):
            return LMBillingError(reason)
        if status in {404, 405, 501} and what in {"files", "batches"}:
            return NoBatches(f"{self.endpoint} takes no batches (POST {what} answered HTTP {status})")
        if status in {404, 410}:
            return BatchOutOfReach(
                f"{self.endpoint} does not know {what} (HTTP {status}); to abandon it: refed status DIR --give-up"
            )
        refused = status is not None and 400 <= status < 500 and status not in {408, 409, 429}
        if refused and what in {"files", "batches"}:
            return BatchRejected(f"{self.endpoint} refused a batch: HTTP {status}: {reason}")
        return BatchOutOfReach(f"{self.endpoint} gives no answer about batches ({what}): {reason}")


def _used_up(error: Exception) -> bool:
    """Whether the account's quota is used up."""
    return "insufficient_quota" in f"{getattr(error, 'code', None)} {getattr(error, 'type', None)} {error}"


def _message(error: Exception) -> str:
    if isinstance(error.__cause__, LM15Error):
        return str(error.__cause__.message)
    if isinstance(error.__cause__, httpx.HTTPError):
        return str(error.__cause__)
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or getattr(error, "message", "") or error)


def _is_azure(config: TeacherConfig) -> bool:
    return str(config.model).startswith("azure/")


def _client(config: TeacherConfig, route: Route) -> Any:
    """The `openai` client. Its own retries are off: they do not know that making a batch twice costs money."""
    import openai

    key, azure = route.key() or "none", _is_azure(config)
    dated = azure and config.api_version is not None
    auth = ("api-key", key) if dated else ("Authorization", f"Bearer {key}")
    transport = ServiceTransport(route.connections(), auth, config.timeout)
    http = httpx.AsyncClient(transport=transport, trust_env=False, timeout=None, follow_redirects=False)  # noqa: S113
    settings: dict[str, Any] = {"api_key": key, "max_retries": 0, "http_client": http}
    if not azure:
        return openai.AsyncOpenAI(base_url=route.endpoint, **settings)
    root = route.endpoint.removesuffix("/openai/v1").removesuffix("/openai")
    if not dated:
        return openai.AsyncOpenAI(base_url=f"{root}/openai/v1", **settings)
    return openai.AsyncAzureOpenAI(azure_endpoint=root, api_version=config.api_version, **settings)
