"""What an endpoint may say of the tokens that a call took: kinds of usage that are not what it bills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Usage: TypeAlias = dict[str, Any]
_NAMES = {
    "prompt_tokens": ("prompt_tokens", "completion_tokens"),
    "input_tokens": ("input_tokens", "output_tokens"),
    "promptTokenCount": ("promptTokenCount", "candidatesTokenCount"),
}


def _counts(read: Callable[[int], Any], written: Callable[[int], Any]) -> Callable[[Usage, int], Usage]:
    """The usage with other counts, none of it cached."""

    def lie(usage: Usage, number: int) -> Usage:  # noqa: ARG001
        (prompt, completion) = next(names for name, names in _NAMES.items() if name in usage)
        said = {prompt: read(usage[prompt]), completion: written(usage.get(completion, 0))}
        return {name: count for name, count in said.items() if count != "left out"}

    return lie


def _cached(share: float) -> Callable[[Usage, int], Usage]:
    """So much of the prompt is said to come from a cache."""

    def lie(usage: Usage, number: int) -> Usage:  # noqa: ARG001
        if "input_tokens" in usage:
            prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
            return usage | {"input_tokens": 0, "cache_read_input_tokens": int(share * prompt)}
        if "promptTokenCount" in usage:
            return usage | {"cachedContentTokenCount": int(share * usage["promptTokenCount"])}
        return usage | {"prompt_tokens_details": {"cached_tokens": int(share * usage["prompt_tokens"])}}

    return lie


def _in_turn(*lies: Callable[[Usage, int], Usage]) -> Callable[[Usage, int], Usage]:
    return lambda usage, number: lies[number % len(lies)](usage, number)


def _same(count: int) -> int:
    return count


LIES: dict[str, Callable[[Usage, int], Usage]] = {
    "nothing": _counts(lambda _: 0, lambda _: 0),
    "one each": _counts(lambda _: 1, lambda _: 1),
    "no prompt": _counts(lambda _: 0, _same),
    "no completion": _counts(_same, lambda _: 0),
    "a prompt of one": _counts(lambda _: 1, _same),
    "a completion of one": _counts(_same, lambda _: 1),
    "a tenth": _counts(lambda count: count // 10, lambda count: count // 10),
    "a tenth written": _counts(_same, lambda count: count // 10),
    "all cached": _cached(1),
    "more cached than read": _cached(10),
    "nothing, now and then": _in_turn(_counts(_same, _same), _counts(lambda _: 0, lambda _: 0), lambda usage, _: usage),
    "no completion count": _counts(_same, lambda _: "left out"),
    "null": _counts(lambda _: None, lambda _: None),
    "negative": _counts(lambda count: -count, lambda count: -count),
    "text": _counts(lambda _: "0", lambda _: "0"),
    "a billion": _counts(lambda _: 10**9, lambda _: 10**9),
}
"""Kind → from the true usage, in the names of its wire, and the number of the answer to what is said."""
WITHIN = {
    "half": _counts(lambda count: count // 2, lambda count: count // 2),
    "all but one cached": _cached(0.999),
    "a quarter": _counts(lambda count: count // 4, lambda count: count // 4),
}
"""Lies that texts allow, or nearly: what they leave is measured apart."""
