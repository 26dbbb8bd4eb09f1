"""What an improvement changed, word by word, in a form that the page can draw without computing anything."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise, takewhile
from typing import Any, TypeAlias

from rapidfuzz.distance import LCSseq

BOTH, PLAIN, IMPROVED = 0, 1, 2
"""Kinds of a segment: in both texts, only in the plain one, only in the improved one."""
LONGEST = 20_000
"""Words of a text. A longer text is reported as a single change: its table would take hundreds of megabytes."""
_CHANCE = 2
"""Up to this many equal words between two changes are taken for chance: shown as equal, they make it hard to read."""
_ENDS = (".", "!", "?", ":", "\n")
"""What ends a sentence or a line."""
# A word or a sign, and the space after it, which is compared by itself: a full stop that is put in changes no word.
# Python's \w leaves out combining marks, so anything else that is not a space is a word, too.
_WORDS = re.compile(r"(^\s+|\w+|[^\w\s])(\s*)")
_Words: TypeAlias = Sequence[tuple[str, str]]
_Change: TypeAlias = tuple[list[str], list[str], list[str]]
"""(words in both, words removed, words added), in order."""


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


def _changes(old: _Words, new: _Words) -> list[_Change]:
    """The changes, with short equal segments merged into them."""
    changes: list[_Change] = []
    for same, removed, added in _pieces(old, new):
        if changes and (removed or added) and sum(not word.isspace() for word in same) <= _CHANCE:
            changes[-1][1].extend([*same, *removed])
            changes[-1][2].extend([*same, *added])
        else:
            changes.append((same, removed, added))
    changes.append(([], [], []))
    for (before, removed, added), (after, *_) in pairwise(changes):
        alike = _alike(removed[::-1], added[::-1])
        _move_last(alike, removed, after)
        del added[len(added) - alike :]
        if not (removed and added):
            _settle(before, removed or added, after)
    return changes


def _settle(before: list[str], changed: list[str], after: list[str]) -> None:
    """Moves what only one text has to where a sentence begins, if the same words could as well be there: ". And so on"
    between "end" and "." becomes " And so on." behind them."""
    # Each word that moves from `before` into `changed` is compared in its turn: they may go round several times.
    alike = _alike(before[::-1], chain(changed[::-1], before[::-1]) if changed else ())
    _move_last(alike, before, changed)
    _move_last(alike, changed, after)
    most = _alike(changed, after)
    last = [before[-1] if before else "\n", *changed[:most]]
    moved = next((at for at, word in enumerate(last) if word.endswith(_ENDS)), most)
    before += changed[:moved]
    changed += after[:moved]
    del changed[:moved], after[:moved]


def _alike(one: Iterable[str], two: Iterable[str]) -> int:
    """How many words both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


def _move_last(count: int, words: list[str], others: list[str]) -> None:
    """Move the last `count` of `words` before `others`."""
    at = len(words) - count
    others[:0] = words[at:]
    del words[at:]


def _pieces(old: _Words, new: _Words) -> Iterator[_Change]:
    """The changes as they were found: each word and space by itself, and none that is empty."""
    same, removed, added = list[str](), list[str](), list[str]()
    for tag, start, end, other_start, other_end in _opcodes(old, new):
        ours, theirs = old[start:end], new[other_start:other_end]
        if tag != "equal":
            removed += [text for word in ours for text in word if text]
            added += [text for word in theirs for text in word if text]
            continue
        for (word, space), (_, other) in zip(ours, theirs, strict=True):
            if removed or added:
                yield same, removed, added
                same, removed, added = [], [], []
            same.append(word)
            for texts, text in [(same, space)] if space == other else [(removed, space), (added, other)]:
                if text:
                    texts.append(text)
    yield same, removed, added


def _opcodes(old: _Words, new: _Words) -> Any:
    """("equal" or another word, from, to in `old`, from, to in `new`) of each stretch of words."""
    if max(len(old), len(new)) > LONGEST:
        return [("equal" if old == new else "replace", 0, len(old), 0, len(new))]
    return LCSseq.opcodes([word for word, _ in old], [word for word, _ in new]).as_list()


def _utf16_units(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
