"""A server on loopback that speaks OpenAI's API, so that other people's code asks our judge.

Whatever it asks goes through the ledger as any call of ours: reserved at its worst case, booked, capped, retried, and
answered from the ledger where it was asked before. The n-th time that the same request comes is another question, as
at a provider, and has the same answer at a later start.

    async with open_proxy(session, "alpaca-eval") as proxy:
        await proxy.during(run_program(Program(…, variables={"OPENAI_BASE_URL": proxy.address, …})))

Only a client with `proxy.token`, which the code gets as its API key, can ask; it is another one at each start.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, TypeVar

from dspy.lm15 import LM15Error, Request, Response, TokenLogprob, TopLogprob, request_from_openai_chat

from refed_dspy.errors import RowError, RunStopped, TeacherError, UnfitRequest, one_line
from refed_dspy.jobs.session import Session
from refed_dspy.ledger.statements import Answer
from refed_dspy.programs.question import Fit, Question, fitting
from refed_dspy.programs.reasoning import reasoning_of
from refed_dspy.records import digest
from refed_dspy.teachers.recorded import Asked
from refed_dspy.teachers.requests import words_in

if TYPE_CHECKING:
    from aiohttp import web

T = TypeVar("T")
LARGEST = 64 << 20
"""Bytes of a request."""
RETRIED = "x-stainless-retry-count"
"""The header in which OpenAI's clients count how often they have sent this request before."""
UNANSWERED = "This request has no answer. Please try again with a different prompt."
"""What is told of a request that failed alone. AlpacaEval's code looks for the last sentence and goes on without it."""
ENDED = "No further call can be made."
"""What is told once nothing more is asked. Reasons stay here: benchmarks' code looks for words in them, and waits."""
NO_LOGPROBS = "choose a judge that returns log-probabilities"
"""What to do about a judge that gives none."""
_REASONS = {"tool_call": "tool_calls", "error": "stop"}
"""lm15's reason why an answer ended → OpenAI's, where they differ."""


class _AnyLength(Fit):
    """An answer counts that was cut: many a judge is asked for one token."""

    takes_cut = True

    def checked(self, text: str) -> tuple[str, str | None]:
        return text, None


ANY_LENGTH = _AnyLength()


class UnknownRequest(Exception):
    """A body that is no request which could be passed on. The message is one line."""


def request_in(body: Any) -> Request:
    """The request that a Chat Completions `body` makes, with all its parameters. Raises UnknownRequest."""
    try:
        if not isinstance(body, Mapping) or body.get("stream") or body.get("tools"):
            raise ValueError("it is no plain request: streams and tools are not passed on")
        request: Request = request_from_openai_chat({name: value for name, value in body.items() if value is not None})
    except (LM15Error, ValueError, TypeError) as error:
        raise UnknownRequest(one_line(getattr(error, "message", "") or error, 200)) from None
    return request


@dataclass(frozen=True)
class ChatAsked(Asked):
    """A request whose answer the ledger keeps as a whole completion, with its log-probabilities."""

    @classmethod
    def about(cls, request: Request, stage: str, repetition: int = 0) -> ChatAsked:
        """`request` of a `stage`. Its item is a digest of the last message: nobody said what it is about."""
        return cls(request, Question(stage, digest(words_in(request.messages[-1]))), repetition)

    def answer_in(self, response: Response) -> Answer:
        """The completion, as JSON. Raises TeacherError where log-probabilities were asked for and not given."""
        asked, given = self.request.config.logprobs, response.logprobs
        if asked is not None and not (given and (asked == 0 or given[0].top)):
            raise TeacherError(f"judge: {response.model} gives no log-probabilities — {NO_LOGPROBS}")
        return Answer(json.dumps(completion(response)), reasoning=reasoning_of(response))


def completion(response: Response) -> dict[str, Any]:
    """`response` as a Chat Completions API returns it. Tokens that were not reported are 0: clients add them up."""
    usage = response.usage
    read, written = usage.input_tokens or 0, usage.output_tokens or 0
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": response.text or "", "refusal": None},
        "finish_reason": _REASONS.get(response.finish_reason, response.finish_reason),
        "logprobs": None if response.logprobs is None else {"content": [_token(each) for each in response.logprobs]},
    }
    return {
        "id": response.id or "chatcmpl",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": response.model,
        "choices": [choice],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {**_alternative(token), "top_logprobs": [_alternative(each) for each in token.top]}


def _alternative(token: TokenLogprob | TopLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes and list(token.bytes)}


class JudgeProxy:
    """The server's requests, answered by the judge of `session`. `stage`: what the ledger calls them.

    The first request goes ahead of the others, so that a judge that cannot do what is asked costs one call.
    """

    def __init__(self, session: Session, stage: str) -> None:
        self._session, self._judge, self._stage = session, session.recorded_teachers["judge"], stage
        self.token = secrets.token_urlsafe(24)
        """The key that the code must send."""
        self.port = 0
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._times: Counter[str] = Counter()
        self._lead, self._led = asyncio.Lock(), False
        self._answering: set[asyncio.Task[web.Response]] = set()

    @property
    def address(self) -> str:
        """The base URL, ending in /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def during(self, program: Coroutine[Any, Any, T]) -> T:
        """What `program` returns or raises. It is cancelled as soon as the judge can answer nothing more: at a cap, or
        after an error that every other request would meet, which is raised."""
        running = asyncio.ensure_future(program)
        try:
            either: set[asyncio.Future[Any]] = {running, self._ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._ended.done():
                return running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        self._ended.result()
        raise AssertionError("it ended with an error")

    async def close(self) -> None:
        """Let no further call begin, and wait for those in flight: they are paid for."""
        self._session.stop()
        if self._answering:
            _, late = await asyncio.wait(self._answering, timeout=self._session.grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._answering, return_exceptions=True)
        if self._ended.done():
            self._ended.exception()  # looked at: another error may have been raised first
        self._ended.cancel()

    async def chat(self, request: web.Request) -> web.Response:
        """Answer POST /v1/chat/completions. The answer is waited for, and kept, also if the client leaves."""
        if not self._knows_token(request):
            return _error(401, "The key is wrong.")
        try:
            asked = self._asked(request_in(await _body(request)), retried=request.headers.get(RETRIED, "0") != "0")
        except UnknownRequest as error:
            self._end(RunStopped(f"{self._stage}: its code asks what cannot be passed on: {error}"))
            return _error(400, ENDED)
        task = asyncio.ensure_future(self._answer(asked))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        return await task

    def _knows_token(self, request: web.Request) -> bool:
        sent = request.headers.get("Authorization", "")
        return compare_digest(sent.encode(), f"Bearer {self.token}".encode())

    def _asked(self, request: Request, retried: bool) -> ChatAsked:
        """The question that `request` is, as often as it has come. Sent again by a client that had no answer yet, it is
        the same question."""
        content = self._judge.key(ChatAsked.about(request, self._stage)).digest
        if not retried or not self._times[content]:
            self._times[content] += 1
        return ChatAsked.about(request, self._stage, self._times[content] - 1)

    async def _answer(self, asked: ChatAsked) -> web.Response:
        if not self._led:
            async with self._lead:
                if not self._led:
                    return await self._judged(asked)
        return await self._judged(asked)

    async def _judged(self, asked: ChatAsked) -> web.Response:
        """What the judge answers, or what is told in its place."""
        if self._ended.done():
            return _error(402, ENDED)
        try:
            with fitting(ANY_LENGTH):
                text = (await self._judge.answer(asked)).text
        except RowError as error:  # it is in the ledger, with its reason
            if isinstance(error, UnfitRequest) and not error.final and not self._led:
                self._end(self._unable(asked, error))
            return _error(400, UNANSWERED)
        except Exception as error:  # noqa: BLE001 — whatever it is, `during` raises it
            self._end(error)
            return _error(402, ENDED)
        self._led = True
        self._session.progress.keep()
        return _reply(200, text)

    def _unable(self, asked: ChatAsked, error: UnfitRequest) -> TeacherError:
        """What a refusal of the first request is: it is what all of them ask for that is refused."""
        remedy = NO_LOGPROBS if asked.request.config.logprobs is not None else "check its settings"
        return TeacherError(f"judge: it refuses what {self._stage} asks: {error.reason} — {remedy}")

    def _end(self, error: BaseException) -> None:
        """Answer nothing more; `during` raises `error`."""
        if not self._ended.done():
            self._ended.set_exception(error)


@asynccontextmanager
async def open_proxy(session: Session, stage: str) -> AsyncIterator[JudgeProxy]:
    """The proxy of a session whose models run, listening inside the block. What is in flight as the block ends gets
    the session's grace."""
    from aiohttp import web

    proxy = JudgeProxy(session, stage)
    application = web.Application(client_max_size=LARGEST)
    application.router.add_post("/v1/chat/completions", proxy.chat)
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.port = int(runner.addresses[0][1])
        yield proxy
    finally:
        await proxy.close()
        await runner.cleanup()


async def _body(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError:
        raise UnknownRequest("its body is no JSON") from None


def _reply(status: int, text: str) -> web.Response:
    from aiohttp import web

    return web.Response(status=status, text=text, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return _reply(status, json.dumps({"error": error}))
