"""Nonsense of 1.5 MB as answers: how long the event loop stands still at most, and whether the other rows suffer.

`python -m benchmarks.nonsense [KIND …]`: runs with concurrency 4 and all filters against a server, in a process of its
own, that answers one request in six with a kind of nonsense: as the whole answer, or as a text in the JSON that was
asked for. A ticker in the loop says how long it stood still. About five minutes.
`python -m benchmarks.nonsense passes`: each pass over a text by itself, at two lengths. About as long.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping

LENGTH = 1_500_000
"""Bytes of nonsense, about."""
EVERY = 6
"""One answer in so many is nonsense."""
SIZE = 24
UNITS: Mapping[str, str] = {
    "newlines": "\n", "carriage returns": "\r\n", "spaces": " ", "tabs": "\t", "indented lines": "\n ",
    "no-break spaces": "\xa0", "zero-width": "\u200b", "brackets": "[", "bracket pairs": "[]", "braces": "{",
    "brace pairs": "{}", "closing braces": "}", "parentheses": "(", "angles": "<", "closing tags": "</",
    "tags": "<example>", "quotes": '"', "curly quotes": "“", "apostrophes": "'", "a's": "a'", "backslashes": "\\",
    "escapes": "\\u0041", "half escapes": "\\u", "think": "<think>", "closed thoughts": "</think>",
    "thoughts": "<think></think>", "fields": "[[ ## response ## ]]\n", "cut fields": "[[ ## ",
    "openings": '{"a":"', "objects": '{"a":1}', "lists": '{"a":[', "fences": "```", "fence lines": "\n```python\n",
    "ticks": "` ", "digits": "7", "numbered": "1. ", "numbered lines": "1.\n", "table": "| a | b |\n|---|---|\n",
    "stars": "*", "bold": "**a", "underscores": "_", "hashes": "#", "dashes": "- ", "dots": ".",
    "colons": "the following: ",
    "addresses": "http://", "one word": "a", "capitals": "A", "words": "the reference ", "short words": "a b ",
    "CJK": "漢", "marks": "e\u0301\u0302", "marks alone": "\u0301", "emoji": "👩‍👩‍👧",
    "flags": "🇩", "half pairs": "\ud800",
    "slots": "[your ", "refusals": "i cannot ", "commas": ",", "please": "please ", "equals": "=", "at": "@a.",
    "ampersands": "&amp;", "NUL": "\0", "right to left": "\u202e",
}  # fmt: skip
"""What is repeated."""


@functools.cache
def nonsense(kind: str, length: int = LENGTH) -> str:
    """About `length` bytes of this kind."""
    if kind == "thoughts before openings":
        return "<think>" + nonsense("openings", length)
    if kind == "thoughts before objects":
        return "<think>" + nonsense("objects", length) + "x"
    if kind == "objects between thoughts":
        return "</think>{}".join([""] * (length // 10))
    if kind == "random letters":
        return "".join(random.Random(0).choices("abcdefghij KLM.,\n", k=length))
    if kind == "random characters":
        return "".join(map(chr, random.Random(0).choices(range(32, 0xD000), k=length // 3)))
    unit = UNITS[kind]
    return unit * (length // len(unit.encode("utf-8", "surrogatepass")))


KINDS = (
    *UNITS, "thoughts before openings", "thoughts before objects", "objects between thoughts", "random letters",
    "random characters",
)  # fmt: skip
