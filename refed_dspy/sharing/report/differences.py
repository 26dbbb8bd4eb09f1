"""What an improvement changed, word by word, in a form that a page can draw without computing anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rapidfuzz.distance import LCSseq

BOTH, PLAIN, IMPROVED = 0, 1, 2
"""Kinds of a stretch: in both texts, only in the plain one, only in the improved one."""
LONGEST = 20_000
"""Words of a text. Longer ones are told as one change: their table would take hundreds of megabytes."""
_ISLAND = 2
"""Equal words between two changes that are no longer than this are chance, and make a difference hard to read."""
# A word or a sign with the space behind it. Python's \w leaves out the marks that belong to letters, so whatever else
# is no space is a word, too.
_WORDS = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")


def difference(plain: str, improved: str) -> list[int]:
    """How `improved` came of `plain`: kind, length, kind, length, … to be walked along both texts.

    Lengths count UTF-16 units, as browsers do. Of two changes in a row the one in the plain text comes first.
    """
    told: list[int] = []
    for same, gone, new in _changes(_WORDS.findall(plain), _WORDS.findall(improved)):
        for kind, words in ((BOTH, same), (PLAIN, gone), (IMPROVED, new)):
            if words:
                told += [kind, _units("".join(words))]
    return told


def _changes(old: Sequence[str], new: Sequence[str]) -> list[tuple[list[str], list[str], list[str]]]:
    """Stretches of (words in both, words taken out, words put in), in order."""
    if max(len(old), len(new)) > LONGEST:
        return [([], list(old), list(new))] if old != new else [(list(old), [], [])]
    told: list[tuple[list[str], list[str], list[str]]] = []
    for same, gone, put in _stretches(old, new):
        if told and same and (gone or put) and len(same) <= _ISLAND:
            told[-1][1].extend([*same, *gone])
            told[-1][2].extend([*same, *put])
        else:
            told.append((same, gone, put))
    return told


def _stretches(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[list[str], list[str], list[str]]]:
    same, gone, put = list[str](), list[str](), list[str]()
    for op in LCSseq.opcodes(old, new):
        if op.tag == "equal":
            if same or gone or put:
                yield same, gone, put
            same, gone, put = list(old[op.src_start : op.src_end]), [], []
        else:
            gone += old[op.src_start : op.src_end]
            put += new[op.dest_start : op.dest_end]
    if same or gone or put:
        yield same, gone, put


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
