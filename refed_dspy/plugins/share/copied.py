"""How many rows hold text of their references: that text comes under the references' license, not the data set's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from refed_dspy.plugins.metrics.wording import words

NGRAM_WORDS = 8
"""Length of the n-grams that are compared. A text of fewer words counts as not copied."""
COPIED_SHARE = 0.5
"""A text counts as copied from this share of its n-grams on."""

NGram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """A row's texts, and the id of its reference."""

    reference: str
    instruction: str
    response: str
    improved_response: str


@dataclass(frozen=True, slots=True)
class Copied:
    """In how many rows half or more of a column's n-grams are in the row's reference; `rows`: in any of the three."""

    instruction: int = 0
    response: int = 0
    improved_response: int = 0
    rows: int = 0


def count_copied(rows: Sequence[DrawnRow], references: Mapping[str, Sequence[str]]) -> Copied:
    """Compare each row with its reference; `references`: id → texts. A reference that is missing counts as empty.

    Words are compared without case and punctuation (`words`). N-grams are held of one reference at a time.
    """
    marks: list[tuple[bool, bool, bool]] = []
    by_reference = attrgetter("reference")
    for reference, group in groupby(sorted(rows, key=by_reference), key=by_reference):
        source = frozenset(ngram for text in references.get(reference, ()) for ngram in _ngrams(text))
        if not source:
            continue
        for row in group:
            texts = row.instruction, row.response, row.improved_response
            copied = {text: _is_copied(text, source) for text in set(texts)}
            marks.append((copied[texts[0]], copied[texts[1]], copied[texts[2]]))
    instructions, responses, improved = (sum(mark[column] for mark in marks) for column in range(3))
    return Copied(instructions, responses, improved, rows=sum(map(any, marks)))


def _is_copied(text: str, source: frozenset[NGram]) -> bool:
    """Whether COPIED_SHARE of the n-grams of `text`, or more, are in `source`; False where it has none."""
    hits = [ngram in source for ngram in _ngrams(text)]
    return bool(hits) and sum(hits) / len(hits) >= COPIED_SHARE


def _ngrams(text: str) -> Iterator[NGram]:
    """All runs of NGRAM_WORDS words, in order."""
    sequence = words(text)
    return zip(*(sequence[start:] for start in range(NGRAM_WORDS)), strict=False)
