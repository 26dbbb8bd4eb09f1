"""What the batch services that are asked over HTTP have in common: how they are asked, and what becomes of errors."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dspy.lm15 import LM15Error, ProviderError, TransportError
from dspy.utils.exceptions import LMAuthError, LMBillingError, LMError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_random_exponential

from refed_dspy.config.keys import without_keys
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.connections import BYTES_A_SECOND, AnswerTooLong, HttpReply
from refed_dspy.errors import one_line
from refed_dspy.programs.lm_errors import BatchOutOfReach, BatchRejected, NoBatches, NotAnApi, NotReached, Redirected
from refed_dspy.teachers.batch.service import (
    EARLIER,
    LAG,
    YOUNG,
    BatchService,
    Deliver,
    NoRoom,
    PendingRequest,
    ServiceBatch,
    json_lines,
)
from refed_dspy.teachers.rate_limits import LONGEST_PAUSE, PATIENCE
from refed_dspy.teachers.route import Route
from refed_dspy.teachers.transport import longest_answer

LONGEST_REPLY = 1 << 24
"""Bytes of a reply about batches; a list of 100 takes 100 KB."""
OLDER = 100
"""So many earlier batches in a row end a search: lists are newest first, but not exactly."""
BUSY = 3
"""After so many refusals of a batch by a limit, smaller ones are made."""
MOST_LISTED = 20_000
"""A list of more batches than this does not end."""
_MAKING = {"files", "batches"}
"""Paths at which nothing was made where they are refused."""
T = TypeVar("T")


class StatusError(Exception):
    """A service answered with an error's status, in its own words if it has any."""

    def __init__(self, status: int, body: bytes) -> None:
        try:
            error = json.loads(body)["error"]
            super().__init__(str(error["message"] if isinstance(error, dict) else error))
        except (ValueError, KeyError, TypeError, RecursionError):
            super().__init__(f"answered HTTP {status}")
        self.status, self.body = status, body


@dataclass(frozen=True)
class UploadedFile:
    """A file of requests at the service. `refused`: why it is of no use there."""

    name: str
    processing: bool = False
    refused: str = ""


class HttpService(BatchService):
    """A batch service over HTTP, for one event loop."""

    def __init__(self, config: TeacherConfig, route: Route, auth: tuple[str, str], patience: float = PATIENCE) -> None:
        """`auth`: the header with the key."""
        super().__init__(route.endpoint, route.model)
        self._patience, self._seconds, self._retries = patience, config.timeout, config.retries
        self._longest = longest_answer(config)
        self._look_again = min(1.0, config.batch.poll)
        self._lag = min(LAG, 10 * config.batch.poll)
        self._headers = dict([auth])
        """Of every request."""
        self._connections = route.connections()

    # --- what each service has of its own, in one attempt

    @abstractmethod
    async def _upload(self, requests: Sequence[PendingRequest]) -> UploadedFile:
        """A file of the requests, where the service wants one."""

    async def _uploaded(self, name: str) -> UploadedFile:
        """The file as it stands."""
        return UploadedFile(name)

    @abstractmethod
    async def _make(self, prepared: str, requests: Sequence[PendingRequest], nonce: str) -> ServiceBatch:
        """Make the batch."""

    @abstractmethod
    def _listed(self) -> AsyncIterator[tuple[float, ServiceBatch, set[str]]]:
        """The account's batches, newest first: (created in seconds since 1970, batch, what it is found by)."""

    @abstractmethod
    async def _looked(self, name: str) -> ServiceBatch:
        """The batch as it stands."""

    @abstractmethod
    def _answers_at(self, file: str) -> str:
        """The address of an answer file."""

    # --- what they have in common

    async def prepare(self, requests: Sequence[PendingRequest]) -> str:
        try:
            file, since = await self._with_retries(lambda: self._upload(requests), "files"), time.monotonic()
            while file.processing:
                if time.monotonic() - since > self._patience:
                    raise NotReached(f"{self.endpoint} took too long to process a file")
                await asyncio.sleep(self._look_again)
                file = await self._with_retries(partial(self._uploaded, file.name), "files")
        except BatchOutOfReach as error:  # nothing was made, so another teacher may be asked
            raise NotReached(error.message or str(error)) from None
        if file.refused:
            raise BatchRejected(f"{self.endpoint} refused the file: {one_line(without_keys(file.refused))}")
        return file.name

    async def create(self, prepared: str, requests: Sequence[PendingRequest], nonce: str, since: float) -> ServiceBatch:
        async def make() -> ServiceBatch:
            tried.append(True)
            found = await self.find(nonce, since, len(requests), prepared) if len(tried) > 1 else None
            try:
                return found or await self._make(prepared, requests, nonce)
            except StatusError as error:
                if error.status == 429 and len(tried) > BUSY and not _used_up(error):
                    raise NoRoom from None
                raise

        tried: list[bool] = []
        try:
            return await self._with_retries(make, "batches")
        except (BatchRejected, NoBatches, Redirected, LMAuthError, LMBillingError) as error:
            if len(tried) < 2:
                raise
            raise BatchOutOfReach(f"it is unknown whether {self.endpoint} has the batch: {error}") from None

    async def find(self, nonce: str, since: float, requests: int, prepared: str = "") -> ServiceBatch | None:
        started, young = time.monotonic(), time.time() - since < YOUNG
        while True:
            found, undecided = await self._with_retries(
                lambda: self._search({nonce, prepared}, since, requests), "batches"
            )
            late = not young or time.monotonic() - started >= self._lag
            if found is not None or (late and not undecided):
                return found
            await asyncio.sleep(self._look_again)

    async def _search(self, wanted: set[str], since: float, requests: int) -> tuple[ServiceBatch | None, bool]:
        """(The batch that is found by one of `wanted`, whether a later look may say more)."""
        older = seen = 0
        undecided = False
        async for created, batch, found_by in self._listed():
            if (seen := seen + 1) > MOST_LISTED:
                raise AnswerTooLong("its list of batches does not end")
            if batch.name not in self.known:
                match = await self._is_it(batch, found_by, wanted, requests)
                if match:
                    return batch, False
                undecided = undecided or match is None
            older = older + 1 if created < since - EARLIER else 0
            if older >= OLDER:
                break
        return None, undecided

    async def _is_it(self, batch: ServiceBatch, found_by: set[str], wanted: set[str], requests: int) -> bool | None:  # noqa: ARG002
        """Whether a listed batch is the one that is looked for; None where it cannot be told yet."""
        return bool(found_by & wanted - {""})

    async def look(self, name: str) -> ServiceBatch:
        return await self._with_retries(lambda: self._looked(name), f"batches/{name}")

    async def read(self, file: str, requests: int, deliver: Deliver) -> None:
        async def download() -> None:
            async with self._exchange("GET", self._answers_at(file), most=None) as (_, pieces):
                await deliver(json_lines(pieces, self._longest, requests))

        await self._with_retries(download, f"files/{file}")

    async def exists(self) -> bool:
        try:
            await self._with_retries(self._first, "batches")
        except NoBatches:
            return False
        return True

    async def aclose(self) -> None:
        await self._connections.aclose()

    async def _first(self) -> None:
        async for _ in self._listed():
            return

    # --- asking

    async def _json(self, method: str, address: str, body: Any = None, size: int = 0, **headers: str) -> Any:
        """The JSON object that is answered. `body`: a JSON object, or what aiohttp sends, of `size` bytes. Raises
        StatusError, NotAnApi, TransportError, TimeoutError."""
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"content-type": "application/json", **headers}
        async with self._exchange(method, address, body, size, headers) as (_, pieces):
            text = b"".join([piece async for piece in pieces])
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise NotAnApi(f"{self.endpoint} gave an answer that is not an API's ({method} {urlsplit(address).path})")
        return value

    @asynccontextmanager
    async def _exchange(
        self, method: str, address: str, body: Any = None, size: int = 0, headers: Mapping[str, str] | None = None,
        most: int | None = LONGEST_REPLY,
    ) -> AsyncIterator[tuple[HttpReply, AsyncIterator[bytes]]]:  # fmt: skip
        """A reply whose head has come, and its body in pieces. Both have the teacher's `timeout`, and a second more for
        every BYTES_A_SECOND."""
        began = asyncio.get_running_loop().time()

        async def pieces(reply: HttpReply) -> AsyncIterator[bytes]:
            read = 0
            async for piece in reply:
                read += len(piece)
                deadline.reschedule(began + self._seconds + (size + read) / BYTES_A_SECOND)
                yield piece

        async with asyncio.timeout(self._seconds + size / BYTES_A_SECOND) as deadline:
            sent = [*self._headers.items(), *(headers or {}).items()]
            async with self._connections.ask(method, address, sent, body, most=most) as reply:
                if reply.status >= 300:
                    raise StatusError(reply.status, await _beginning(reply))
                yield reply, pieces(reply)

    async def _with_retries(self, ask: Callable[[], Awaitable[T]], what: str) -> T:
        """`ask`, retried while the endpoint is out of reach or busy. `what`: its path, for the LMError raised."""
        too_slow = itertools.count(1)

        def is_passing(error: BaseException) -> bool:
            if isinstance(error, TimeoutError) and next(too_slow) > self._retries:
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
                    return answer
        except (StatusError, TimeoutError, LM15Error) as error:
            reason = one_line(without_keys(str(getattr(error, "message", "") or error))) or "no whole answer in time"
            if isinstance(error, TransportError | TimeoutError) and not self.reached:
                raise NotReached(f"{self.endpoint} cannot be reached: {reason}") from None
            raise self._translated(error, reason, what) from None
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            told = f"{type(error).__name__}: {one_line(error, 100)}"
            raise NotAnApi(f"{self.endpoint} gave an answer about {what} that cannot be read ({told})") from None
        raise AssertionError("tenacity ends by returning or raising")

    def _is_passing(self, error: BaseException) -> bool:
        """Whether asking again may help."""
        if isinstance(error, StatusError):
            self.reached = True
            return not _used_up(error) and (error.status in {408, 409, 429} or error.status >= 500)
        if isinstance(error, ProviderError):  # its reply is too long
            self.reached = True
            return False
        return self.reached and isinstance(error, TransportError | TimeoutError)

    def _translated(self, error: Exception, reason: str, what: str) -> LMError | NoRoom:
        """The error for one of a request at the path `what`."""
        status = getattr(error, "status", None)
        if status is not None and 300 <= status < 400:
            return Redirected(self.endpoint, status)
        if status in {401, 403} or _says(error, b"API_KEY_INVALID"):  # with Gemini's status 400
            return LMAuthError(reason)
        if _used_up(error):
            return LMBillingError(reason)
        if status in {404, 405, 501} and what in _MAKING:
            return NoBatches(f"{self.endpoint} takes no batches (POST {what} answered HTTP {status})")
        if status in {404, 410}:
            return BatchOutOfReach(
                f"{self.endpoint} does not know {what} (HTTP {status}); to abandon it: refed status DIR --give-up"
            )
        refused = status is not None and 400 <= status < 500 and status not in {408, 409, 429}
        if refused and what in _MAKING:
            return BatchRejected(f"{self.endpoint} refused a batch: HTTP {status}: {reason}")
        return BatchOutOfReach(f"{self.endpoint} gives no answer about batches ({what}): {reason}")


async def _beginning(reply: HttpReply) -> bytes:
    """The body of an error, no further than it can say anything."""
    body = b""
    async for piece in reply:
        body += piece
        if len(body) > LONGEST_REPLY:
            break
    return body


def _used_up(error: Exception) -> bool:
    """Whether the account's quota or balance is used up."""
    return _says(error, b"insufficient_quota", b"credit balance is too low")


def _says(error: Exception, *words: bytes) -> bool:
    """Whether a service's error has any of these words."""
    return isinstance(error, StatusError) and any(each in error.body for each in words)
