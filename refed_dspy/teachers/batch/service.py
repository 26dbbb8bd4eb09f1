"""A provider's Files and Batches API, through the `openai` package: OpenAI, Azure OpenAI, and compatible services.

It keeps no state, and every method may be called again after a kill: only `create` makes something that costs money,
and what it made is found again by its nonce.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import IO, Any, TypeAlias, TypeVar, cast

import httpx2
from dspy.lm15 import LM15Error, TransportError
from dspy.utils.exceptions import LMAuthError, LMBillingError, LMError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from refed_dspy.config.keys import without_keys, without_keys_in
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.connections import BYTES_A_SECOND, AnswerTooLong, Connections, HttpReply, NotConnected
from refed_dspy.errors import one_line
from refed_dspy.programs.lm_errors import BatchOutOfReach, BatchRejected, NoBatches, NotAnApi, NotReached, Redirected
from refed_dspy.teachers.rate_limits import LONGEST_PAUSE, PATIENCE
from refed_dspy.teachers.route import Route
from refed_dspy.teachers.transport import longest_answer

log = logging.getLogger("refed_dspy.batches")
LONGEST_REPLY = 1 << 24
"""Bytes of a reply about batches; a list of 100 takes 100 KB."""
Lines: TypeAlias = AsyncIterator[dict[str, Any]]
_ABOUT_THE_BODY = {"content-type", "content-length", "accept"}
_NAME = re.compile(r"call-([0-9]{1,18})")
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
CANCELLED = "cancelled"
"""The service's status of a batch that a person cancelled there."""
current_request: ContextVar[PendingRequest | None] = ContextVar("refed_pending_request", default=None)
"""The request that this task is sending."""


async def json_lines(chunks: AsyncIterator[bytes], longest: int, requests: int) -> Lines:
    """The lines of a file; {} for one that is no JSON object or has more than `longest` bytes. A file that answers so
    many `requests` is read no further than it can be long."""
    start, length, read, left_out = b"", 0, 0, 0
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")  # at line feeds only: texts may contain Unicode's other line ends
        for end in ends:
            if length + len(end) > longest:
                left_out += 1
                yield {}
            elif line := (start + end).strip():
                yield _object(line)
            start, length = b"", 0
        length += len(rest)
        start = start + rest if length <= longest else b""
        read += len(chunk)
        if read > longest * (requests + 1):
            log.warning("a batch's file is longer than its answers can be; it was not read to the end")
            yield {}
            return
    if length > longest or start.strip():
        left_out += length > longest
        yield _object(start)
    if left_out:
        log.warning("answers over %.1f MB left out of a batch's file: %d", longest / 1e6, left_out)


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = without_keys_in(json.loads(line))
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {}


@dataclass
class OutputReader:
    """What was read of a batch's files. `left`: calls without an answer so far; `not_executed`: those of them that the
    service says it did not execute; `unreadable`: number of lines that name no call."""

    left: set[int]
    not_executed: set[int] = field(default_factory=set)
    unreadable: int = 0

    def answer(self, line: Mapping[str, Any]) -> tuple[int, str] | None:
        """(Number of the call, answer as the log keeps it) of a line; None where it holds none for a call in `left`."""
        name = _NAME.fullmatch(str(line.get("custom_id")))
        if name is None:
            self.unreadable += 1
        elif (number := int(name[1])) in self.left:
            if (text := _answer_text(line)) is not None:
                return number, text
            if _was_not_executed(line):
                self.not_executed.add(number)
        return None


def _answer_text(line: Mapping[str, Any]) -> str | None:
    """A line's answer as the log keeps it; None where it has none."""
    response = line.get("response")
    if not isinstance(response, Mapping) or type(response.get("status_code")) is not int:
        return None
    return json.dumps({"status": response["status_code"], "body": response.get("body"), "at": round(time.time())})


def _was_not_executed(line: Mapping[str, Any]) -> bool:
    """Whether a line says that the batch ended before the service executed this request."""
    error = line.get("error")
    code = error.get("code") if isinstance(error, Mapping) else None
    return code in {"batch_expired", "batch_cancelled"}


class ServiceTransport(httpx2.AsyncBaseTransport):
    """What the `openai` client sends through: our connections. Of the headers that it makes only those about the body
    leave, and `auth`: the client reads tokens, organizations and more from the environment.

    A request and its reply have `seconds`, and one more for every BYTES_A_SECOND of a file.
    """

    def __init__(self, connections: Connections, auth: tuple[str, str], seconds: float) -> None:
        self._connections, self._auth, self._seconds = connections, auth, seconds

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        own = [(name, value) for name, value in request.headers.items() if name.lower() in _ABOUT_THE_BODY]
        sent = int(request.headers.get("content-length") or 0)
        is_file = request.url.path.endswith("/content")
        most = None if is_file else LONGEST_REPLY  # the lines of a file are bounded
        exchange = AsyncExitStack()
        try:
            with _as_httpx2():
                async with asyncio.timeout(self._seconds + sent / BYTES_A_SECOND):
                    ask = self._connections.ask(
                        request.method,
                        str(request.url),
                        [*own, self._auth],
                        cast("AsyncIterator[bytes]", request.stream) if sent else None,
                        most=most,
                    )
                    reply = await exchange.enter_async_context(ask)
                    if not is_file or reply.status >= 400:
                        content = await reply.read()
                        await exchange.aclose()
                        return httpx2.Response(reply.status, headers=reply.headers, content=content)
        except BaseException:
            await exchange.aclose()
            raise
        return httpx2.Response(reply.status, headers=reply.headers, stream=_File(exchange, reply, self._seconds))

    async def aclose(self) -> None:
        await self._connections.aclose()


class _File(httpx2.AsyncByteStream):
    """The bytes of a file, which ends `exchange`."""

    def __init__(self, exchange: AsyncExitStack, reply: HttpReply, seconds: float) -> None:
        self._exchange, self._pieces, self._seconds = exchange, aiter(reply), seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read, began = 0, asyncio.get_running_loop().time()
        while True:
            with _as_httpx2():
                async with asyncio.timeout_at(began + self._seconds + read / BYTES_A_SECOND):
                    piece = await anext(self._pieces, b"")
            if not piece:
                return
            read += len(piece)
            yield piece

    async def aclose(self) -> None:
        await self._exchange.aclose()


@contextmanager
def _as_httpx2() -> Iterator[None]:
    """Raise what our connections raise, and a deadline's end, as the `openai` client knows it."""
    try:
        yield
    except NotConnected as error:
        raise httpx2.ConnectError(error.message) from None
    except TransportError as error:
        raise httpx2.ReadError(error.message) from None
    except TimeoutError:
        raise httpx2.ReadTimeout("no whole answer in time") from None


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
            if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException) and next(too_slow) > self._retries:
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
        except (openai.OpenAIError, httpx2.HTTPError, LM15Error) as error:
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
        return self.reached and isinstance(error, openai.APIConnectionError | httpx2.HTTPError)

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
    if isinstance(error.__cause__, httpx2.HTTPError):
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
    http = httpx2.AsyncClient(transport=transport, trust_env=False, timeout=None, follow_redirects=False)  # noqa: S113
    settings: dict[str, Any] = {"api_key": key, "max_retries": 0, "http_client": http}
    if not azure:
        return openai.AsyncOpenAI(base_url=route.endpoint, **settings)
    root = route.endpoint.removesuffix("/openai/v1").removesuffix("/openai")
    if not dated:
        return openai.AsyncOpenAI(base_url=f"{root}/openai/v1", **settings)
    return openai.AsyncAzureOpenAI(azure_endpoint=root, api_version=config.api_version, **settings)


class Unanswered(TransportError):
    """A batch ended without an answer to this request. `billed`: it may have been paid for all the same."""

    def __init__(self, why: str, *, billed: bool = False) -> None:
        super().__init__(f"the batch ended without an answer: {why}")
        self.why, self.billed = why, billed


class Straggler(Exception):
    """So few requests wait that they are not worth a batch: this one is to be asked outside a batch."""


@dataclass(eq=False)
class PendingRequest:
    """One request in a batch: the number of its call, its answer, and whether the service may have it."""

    number: int
    held: bool = False
    """An earlier start sent it."""
    line: bytes = b""
    answer: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    sent: bool = False
    service: BatchService | None = None
    """Sends it, with its own key; None: the tracker's own service."""

    @property
    def came(self) -> bool:
        """Whether the answer has come."""
        return self.answer.done() and not self.answer.cancelled() and self.answer.exception() is None

    @property
    def billed(self) -> bool:
        """Whether it ended without an answer and may have been paid for all the same."""
        error = None if not self.answer.done() or self.answer.cancelled() else self.answer.exception()
        return isinstance(error, Unanswered) and error.billed
