"""The tokens that an answer says it took, as far as that can be believed: no more than its request can have taken, and
no fewer than its texts must have.

Below a token a word a call is charged a token a word, so whatever an endpoint says, it cannot bill much more than what
the caps count. A quarter of that is not believed at all.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from typing import Any, NamedTuple

from dspy.lm15 import Response

from refed_dspy.ledger.budget import LEEWAY

MOST_TOKENS = 10**9
BELOW, FEW = 4, 8
"""A usage of less than the least over the first is not believed, since some tokenizers have tokens of two words or
three; but for so many words, since some endpoints estimate."""
_LONG, _PACKED = 24, 12
"""Characters a word above which words do not count a text (Chinese, or base64), and its packed bytes a token, at most:
in no script known a token has as many."""
_REASONING_APART = {"gemini", "vertex", "vertex-express", "xai"}
_PIECE, _PIECES = 256, 65_536
"""Characters that are looked up at once, and how many such pieces are remembered, or twice as many."""


def used_tokens(provider: str, usage: Any) -> Used:
    """The tokens of a provider's usage.

    Anthropic does not count cached tokens as prompt tokens, nor Gemini and xAI reasoning as completion; they are
    billed, so they are added here. So is what exceeds anywhere the whole that it should be part of.
    """
    prompt, cached, written, completion = map(
        _count, (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens, usage.output_tokens)
    )
    apart = (cached or 0) + (written or 0)
    if prompt is not None and ("anthropic" in provider or apart > prompt):
        prompt += apart
    if completion is not None:
        reasoning = _count(usage.reasoning_tokens) or 0
        if provider in _REASONING_APART or reasoning > completion:
            completion += reasoning
    return Used(prompt, cached, written, completion)


def reasoning_tokens(usage: Any) -> int | None:
    """How many tokens of a completion were reasoning; None where that is not said."""
    return _count(usage.reasoning_tokens)


def is_incredible(usage: Any, prompt_bound: int, max_tokens: int) -> bool:
    """Whether a usage says more than a request can have taken that has at most `prompt_bound` tokens in its prompt. A
    provider may add to a prompt, or pass `max_tokens`, but not many times."""
    read = max(usage.input_tokens or 0, usage.cache_read_tokens or 0, usage.cache_write_tokens or 0)
    written = max(usage.output_tokens or 0, usage.reasoning_tokens or 0)
    return read > LEEWAY * prompt_bound or written > LEEWAY * max_tokens


class Used(NamedTuple):
    """Tokens of a call: of its prompt, of them cached and written to a cache; of its completion. None: not said."""

    prompt: int | None = None
    cached: int | None = None
    written: int | None = None
    completion: int | None = None

    def raised(self, prompt: str, fresh: str, answer: str) -> Used | None:
        """No less than the texts must have, and nothing cached of what is `fresh` in the prompt, since it was never
        sent before. None where it is too little to be believed, or all of a prompt is said to be cached that is not
        the very same as one before."""
        if fresh and self.cached and self.cached == self.prompt:
            return None
        counts = (self.prompt, least_tokens(prompt)), (self.completion, least_tokens(answer))
        if any(said is not None and BELOW * said + FEW < least for said, least in counts):
            return None
        read, completion = (None if said is None else max(said, least) for said, least in counts)
        cached = self.cached
        if cached and read is not None:
            cached = max(0, min(cached, read - least_tokens(fresh)))
        return Used(read, cached, self.written, completion)


def least_tokens(text: str) -> int:
    """The fewest tokens that `text` can be, whatever the tokenizer: one a word. Blanks and repetitions count for
    nothing, since a token may stand for a hundred of them."""
    words = len(text.split())
    if len(text) <= _LONG * words:
        return words
    packed = zlib.compress(text.encode("utf-8", "surrogatepass"), 1)
    return max(words, len(packed) // _PACKED)


def text_of_answer(response: Response) -> str:
    """All that a response says, its reasoning too."""
    return " ".join(map(_text_of_part, response.message.parts))


def _text_of_part(part: Any) -> str:
    if part.type == "data":
        return json.dumps(part.value, ensure_ascii=False, separators=(",", ":"))
    return str(getattr(part, "text", None) or "")


class SentBefore:
    """What prompts sent by this process to one model at one endpoint began with: only that can be in its cache."""

    def __init__(self) -> None:
        self._recent, self._older = set[int](), set[int]()

    def fresh(self, prompt: str) -> str:
        """The end of `prompt` that no prompt sent before has had after the same beginning; it is now sent. The last
        65,536 pieces or more are remembered: a provider's cache is not larger."""
        key, begins = 0, None
        for end in range(_PIECE, len(prompt) + 1, _PIECE):
            key = hash((key, prompt[end - _PIECE : end]))
            if begins is None and key not in self._recent and key not in self._older:
                begins = end  # somewhere in this piece
            self._recent.add(key)
        if len(self._recent) > _PIECES:
            self._recent, self._older = set(), self._recent
        return "" if begins is None else prompt[begins:]


@cache
def sent_before(endpoint: str, model: str) -> SentBefore:  # noqa: ARG001 — by which it is cached
    """One for all engines of a model at an endpoint: they share its cache."""
    return SentBefore()


def without_usage(body: bytes) -> bytes | None:
    """An answer (JSON) without its usage; None where it says none, or is something else."""
    answer = _answer(body)
    said = [answer.pop(name, None) for name in ("usage", "usageMetadata")]
    return json.dumps(answer).encode() if any(part is not None for part in said) else None


def first_choice(body: bytes) -> bytes | None:
    """An answer (JSON) with the first of its choices alone; None where it has no more, or is something else."""
    answer = _answer(body)
    if not isinstance(choices := answer.get("choices"), list) or len(choices) < 2:
        return None
    return json.dumps({**answer, "choices": choices[:1]}).encode()


def _answer(body: bytes) -> dict[str, Any]:
    """The object that an answer is; empty where it is none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def whole(count: Any) -> int | None:
    """`count` if it is a number of tokens, else None."""
    return _count(count) if type(count) is int else None


def _count(value: int | None) -> int | None:
    return value if value is not None and 0 <= value <= MOST_TOKENS else None
