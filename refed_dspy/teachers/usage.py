"""The tokens that an answer says it took, as far as that can be believed."""

from __future__ import annotations

import json
from typing import Any

from refed_dspy.ledger.budget import LEEWAY

MOST_TOKENS = 10**9
_REASONING_APART = {"gemini", "vertex", "vertex-express", "xai"}


def used_tokens(provider: str, usage: Any) -> tuple[int | None, int | None, int | None, int | None]:
    """(prompt, of it cached, of it written to a cache, completion) of a provider's usage, None where unknown.

    Anthropic does not count cached tokens as prompt tokens, nor Gemini and xAI reasoning as completion; they are
    billed, so they are added here. So is reasoning anywhere that exceeds the completion it should be part of.
    """
    prompt, cached, written, completion = map(
        _count, (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens, usage.output_tokens)
    )
    if prompt is not None and "anthropic" in provider:
        prompt += (cached or 0) + (written or 0)
    if completion is not None:
        reasoning = _count(usage.reasoning_tokens) or 0
        if provider in _REASONING_APART or reasoning > completion:
            completion += reasoning
    if prompt is not None:  # no share exceeds the whole
        cached = None if cached is None else min(cached, prompt)
        written = None if written is None else min(written, prompt - (cached or 0))
    return prompt, cached, written, completion


def reasoning_tokens(usage: Any) -> int | None:
    """How many tokens of a completion were reasoning; None where that is not said."""
    return _count(usage.reasoning_tokens)


def is_incredible(usage: Any, prompt_bound: int, max_tokens: int) -> bool:
    """Whether a usage says more than a request can have taken that has at most `prompt_bound` tokens in its prompt. A
    provider may add to a prompt, or pass `max_tokens`, but not many times."""
    read = max(usage.input_tokens or 0, usage.cache_read_tokens or 0, usage.cache_write_tokens or 0)
    written = max(usage.output_tokens or 0, usage.reasoning_tokens or 0)
    return read > LEEWAY * prompt_bound or written > LEEWAY * max_tokens


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
