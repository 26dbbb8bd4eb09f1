"""What a model thinks before it answers, apart from the answer.

A server with a reasoning parser sends the reasoning in a field of its own. One without sends it in the answer's text,
up to a `</think>`; some models' templates write the `<think>` before it themselves, so that the text has none.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from dspy.lm15 import Response, TextPart, ThinkingPart

OPEN, CLOSE = "<think>", "</think>"
_ANSWER_BEGINS = re.compile(r"\s*(?:[{\[]|```)")
"""With JSON, a fence, or one of DSPy's own field headers. A text that begins so has no reasoning before it."""

_MARK = re.compile(r'(["{}])(\\*)')
"""Of a text read from its end: what begins or ends a string or an object, and the backslashes before it."""


def split_reasoning(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a model's text. The answer is what comes after the last `</think>`, or after the first one
    that is followed by a JSON object and nothing else, since a text in that may hold the tag, too. Where reasoning was
    never closed, the answer is the JSON object at the end; where there is none, the whole text.
    """
    if _ANSWER_BEGINS.match(text):
        return "", text
    if CLOSE in text:
        start = _last_object(text.rstrip(" \t\n\r"))
        before = text if start is None else text[:start].rstrip()
        if start is None or not before.endswith(CLOSE):
            start = text.rindex(CLOSE) + len(CLOSE)
            before = text[:start]
        return _without_tags(before), text[start:].lstrip()
    if text.lstrip().startswith(OPEN) and (start := _last_object(text.rstrip("`\n\r\t "))) is not None:
        return _without_tags(text[:start]), text[start:]
    return "", text


def _without_tags(reasoning: str) -> str:
    return reasoning.strip().removeprefix(OPEN).removesuffix(CLOSE).strip()


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _last_object(text: str) -> int | None:
    """Where the JSON object begins with which `text` ends; None where it ends with none.

    Read from the end, where it is known that no string is open: reading on from every brace takes an hour where a long
    text is made of them.
    """
    depth, quoted = 0, False
    for mark in _MARK.finditer(text[::-1]):
        sign, backslashes = mark.groups()
        if sign == '"':
            quoted ^= len(backslashes) % 2 == 0
        elif not quoted:
            depth += 1 if sign == "}" else -1
        if depth <= 0:
            start = len(text) - mark.end(1)
            return start if text.endswith("}") and _is_json_object(text[start:]) else None
    return None


def reasoning_of(response: Response) -> str:
    """What the model thought, where it was sent apart from the answer; else empty."""
    return "\n\n".join(part.text for part in response.message.parts if isinstance(part, ThinkingPart) and part.text)


def with_reasoning_apart(response: Response) -> Response:
    """`response` with the reasoning in its text as a part of its own."""
    reasoning, answer = split_reasoning(response.text or "")
    if answer == (response.text or ""):
        return response
    others = [part for part in response.message.parts if not isinstance(part, TextPart)]
    thought = [ThinkingPart(text=reasoning)] if reasoning else []
    parts = (*others, *thought, TextPart(text=answer))
    return replace(response, message=replace(response.message, parts=parts))
