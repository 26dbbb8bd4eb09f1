"""How an attempt ended: its outcome word, what it is charged, and the error to raise."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass, replace
from typing import Any

from dspy.lm15 import (
    BillingError,
    DataPart,
    InvalidRequestError,
    LM15Error,
    ProviderError,
    RateLimitError,
    Response,
    ServerError,
    TextPart,
    TransportError,
)
from dspy.lm15 import TimeoutError as AnswerTimeout

from refed_dspy.concurrency import aside
from refed_dspy.config.keys import without_keys, without_keys_in
from refed_dspy.connections import NotConnected
from refed_dspy.programs.lm_errors import AnswerRefused, NotAnApi, NotReached, Redirected
from refed_dspy.programs.reasoning import with_reasoning_apart
from refed_dspy.records import Call
from refed_dspy.teachers.prices import Price
from refed_dspy.teachers.transport import Unreadable, WebPage
from refed_dspy.teachers.usage import Used, is_incredible, reasoning_tokens, text_of_answer, used_tokens

_PAGE = re.compile(r"<!doctype|<html", re.IGNORECASE)
_TRANSIENT = (RateLimitError, ServerError, TransportError, AnswerTimeout)


@dataclass(frozen=True, slots=True)
class SentAttempt:
    """One attempt that was sent: to whom, at what price, and its call number in the ledger."""

    model: str
    endpoint: str
    price: Price | None
    worst: int | None
    number: int
    started: float
    most: tuple[int, int]
    """Tokens that its prompt and its completion can have at most."""
    prompt: str
    fresh: str
    """The end of its prompt that was not sent before."""

    def used(self, response: Response, provider: str) -> Used | None:
        """The tokens that it took; None where what it says cannot be."""
        if is_incredible(response.usage, *self.most):
            return None
        return used_tokens(provider, response.usage).raised(self.prompt, self.fresh, text_of_answer(response))

    def answered(self, outcome: str, response: Response, used: Used | None) -> Call:
        """The finished call, charged by its tokens; where they were not reported, or cannot be, at its worst case."""
        prompt, cached, written, completion = used or Used()
        cost = self.worst
        if self.price is not None and prompt is not None and completion is not None:
            cost = self.price.cost(prompt, cached or 0, written or 0, completion)
        return Call(
            self.model, self.endpoint, outcome, self._seconds(), prompt, cached, completion, cost, self.number,
            reasoning_tokens(response.usage) if used else None,
        )  # fmt: skip

    def failed(self, error: BaseException) -> Call:
        """The failed call. An error status is not billed; anything else may have been, so its worst case is charged."""
        status = error.status if isinstance(error, LM15Error) else None
        cost = 0 if is_free(status) and not _is_filter(error) else self.worst
        return Call(self.model, self.endpoint, _outcome(error, status), self._seconds(), cost=cost, number=self.number)

    def _seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)


def is_free(status: int | None) -> bool:
    """Whether an answer with this HTTP status is not billed: an error's, but for a 408. A filtered prompt may be."""
    return status is not None and status >= 300 and status != 408


def _outcome(error: BaseException, status: int | None) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if not isinstance(error, LM15Error):
        return "error"
    return "no answer" if status is None else f"http {status}"


async def in_text(response: Response) -> Response:
    """`as_text`, beside the event loop where the answer is long."""
    return await aside(len(response.text or ""), as_text, response)


def as_text(response: Response) -> Response:
    """`response` with its JSON as text, its reasoning apart, and without keys.

    Where a schema has an enum in it (a judge's verdict, say), lm15 returns the parsed value and no text. Adapters and
    the ledger need the text.
    """
    response = with_reasoning_apart(response)
    parts = tuple(map(_part_as_text, response.message.parts))
    if all(new is old for new, old in zip(parts, response.message.parts, strict=True)):
        return response
    return replace(response, message=replace(response.message, parts=parts))


def _part_as_text(part: Any) -> Any:
    if isinstance(part, DataPart):
        return TextPart(text=json.dumps(without_keys_in(part.value), ensure_ascii=False))
    text = getattr(part, "text", None)  # a text, or reasoning
    if not isinstance(text, str) or (clean := without_keys(text)) is text:
        return part
    return replace(part, text=clean)


def outcome_of(response: Response) -> str:
    """`ok`, `cut` or `refused`."""
    outcome = {"length": "cut", "content_filter": "refused"}.get(str(response.finish_reason), "ok")
    if outcome == "ok" and any(part.type == "refusal" for part in response.message.parts):
        return "refused"
    return outcome


def is_rate_limit(error: BaseException) -> bool:
    """A 429 for which waiting helps. The status decides: some messages make lm15 raise another error type."""
    return (
        isinstance(error, LM15Error)
        and not isinstance(error, BillingError)
        and (error.status == 429 or isinstance(error, RateLimitError))
    )


def is_overload(error: BaseException) -> bool:
    """Whether the endpoint says that it is overloaded (503; 529 is Anthropic's)."""
    return isinstance(error, LM15Error) and error.status in {503, 529}


def is_transient(error: BaseException) -> bool:
    """Whether asking again may help."""
    return isinstance(error, _TRANSIENT) and not isinstance(error, BillingError)


def error_to_raise(error: LM15Error, endpoint: str, answered: bool) -> BaseException:
    """The error to raise, without keys: one of `programs.lm_errors` where DSPy has no type for it."""
    if _is_filter(error):
        return AnswerRefused("declined by a content filter")
    # Some endpoints send a list or a number in the message's place.
    error.message = without_keys(str(error.message))
    error.args = tuple(without_keys_in(arg) for arg in error.args)
    if isinstance(error, NotConnected):
        return NotReached(f"{endpoint} cannot be reached: {error.message}")
    if error.status is not None and 300 <= error.status < 400:
        return Redirected(endpoint, error.status)
    if isinstance(error, WebPage) and not answered:
        return NotAnApi(f"{endpoint} {error.message}")
    if not answered and type(error) in {ProviderError, Unreadable}:  # the base type: lm15 could not classify it
        return NotAnApi(f"{endpoint} gave an answer that is not an API's: {_first_paragraph(error.message)}")
    error.message = _first_paragraph(error.message)
    if _PAGE.search(error.message):
        error.message = f"answered HTTP {error.status} with a web page"
    raised: BaseException = error
    return raised


def _first_paragraph(message: str) -> str:
    """The first paragraph of a message. The rest is advice on lm15's own settings."""
    return message.partition("\n\n")[0]


def _is_filter(error: BaseException) -> bool:
    """Whether a content filter refused the prompt. Azure bills those, and a 408 too."""
    if not isinstance(error, InvalidRequestError):
        return False
    text = f"{error.provider_code} {error.message}".lower()
    return "content_filter" in text or "content management policy" in text or "content filtering policy" in text
