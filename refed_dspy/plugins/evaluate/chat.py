"""A request of OpenAI's Chat Completions API as a question to the judge, and the judge's answer as that API's."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dspy.lm15 import LM15Error, Request, Response, TokenLogprob, TopLogprob, request_from_openai_chat

from refed_dspy.errors import TeacherError, one_line
from refed_dspy.ledger.statements import Answer
from refed_dspy.programs.question import Fit, Question
from refed_dspy.programs.reasoning import reasoning_of
from refed_dspy.records import digest
from refed_dspy.teachers.recorded import Asked
from refed_dspy.teachers.requests import text_of

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
        return cls(request, Question(stage, digest(text_of(request.messages[-1]))), repetition)

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
