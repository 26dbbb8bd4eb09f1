"""What an improvement changed, word by word, in a form that the page can draw without computing anything."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rapidfuzz.distance import LCSseq

BOTH, PLAIN, IMPROVED = 0, 1, 2
"""Kinds of a segment: in both texts, only in the plain one, only in the improved one."""
LONGEST = 20_000
"""Words of a text. A longer text is reported as a single change: its table would take hundreds of megabytes."""
_CHANCE = 2
"""Up to this many equal words between two changes are taken for chance: shown as equal, they make it hard to read."""
# A word or a sign with the space after it. Python's \w leaves out combining marks, so anything else that is not a space
# is a word, too.
_WORDS = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")


def difference(plain: str, improved: str) -> list[int]:
    """How `plain` became `improved`, as kind, length, kind, length, … of segments, in the order of both texts.

    Lengths count UTF-16 units, as browsers do. A removed segment comes before the added one that replaces it.
    """
    return [number for kind, text in segments(plain, improved) for number in (kind, _utf16_units(text))]


def segments(plain: str, improved: str) -> Iterator[tuple[int, str]]:
    """(kind, text) of each segment, in the same order."""
    for same, removed, added in _changes(_WORDS.findall(plain), _WORDS.findall(improved)):
        for kind, words in ((BOTH, same), (PLAIN, removed), (IMPROVED, added)):
            if words:
                yield kind, "".join(words)


def _changes(old: Sequence[str], new: Sequence[str]) -> list[tuple[list[str], list[str], list[str]]]:
    """(words in both, words removed, words added), in order, with short equal segments merged into the changes."""
    if max(len(old), len(new)) > LONGEST:
        return [([], list(old), list(new))] if old != new else [(list(old), [], [])]
    changes: list[tuple[list[str], list[str], list[str]]] = []
    for same, removed, added in _opcodes(old, new):
        if changes and same and (removed or added) and len(same) <= _CHANCE:
            changes[-1][1].extend([*same, *removed])
            changes[-1][2].extend([*same, *added])
        else:
            changes.append((same, removed, added))
    return changes


def _opcodes(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """(words in both, words removed, words added), in order: equal words, then changes up to the next ones."""
    same, removed, added = list[str](), list[str](), list[str]()
    for op in LCSseq.opcodes(old, new):
        if op.tag == "equal":
            if same or removed or added:
                yield same, removed, added
            same, removed, added = list(old[op.src_start : op.src_end]), [], []
        else:
            removed += old[op.src_start : op.src_end]
            added += new[op.dest_start : op.dest_end]
    if same or removed or added:
        yield same, removed, added


def _utf16_units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
