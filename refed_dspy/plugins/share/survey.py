"""Figures of the rows for the card: length and variety, origin, what the improvement changed, text copied from the
references, language."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby
from operator import attrgetter
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

from refed_dspy.plugins.metrics.wording import words

if TYPE_CHECKING:
    from refed_dspy.filters.language import Language

T = TypeVar("T")
MAX_DRAWN = 10_000
"""Rows that figures are computed of, at most."""
_TEXTS = ["reference", "instruction", "response", "improved_response"]
_LANGUAGE_ROWS = 300
_MIN_PROBABILITY = 0.8
"""A row's language counts as recognised from this probability on."""
_MIN_SHARE = 0.05
"""A language is named from this share of the rows on."""
NGRAM_WORDS = 8
"""Length of the n-grams that are compared. A text of fewer words counts as not copied."""
COPIED_SHARE = 0.5
"""A text counts as copied from this share of its n-grams on."""
NGram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """What the improvement changed. `same`: rows that it left as they were; `median`, over all rows: the share of words
    that changed (words removed and words added, over the words of both texts; 0 to 1)."""

    same: int
    median: float


@dataclass
class Survey:
    """Collects figures of `rows` rows while they pass through `observe`. Texts are kept of MAX_DRAWN rows at most,
    drawn with a fixed seed."""

    rows: int
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Reference id → its texts, of the rows drawn."""
    features: Counter[str] = field(default_factory=Counter)
    references: Counter[str] = field(default_factory=Counter)
    drawn: list[DrawnRow] = field(default_factory=list)
    first: DrawnRow | None = None

    def __post_init__(self) -> None:
        self._chosen = frozenset(random.Random(0).sample(range(self.rows), min(self.rows, MAX_DRAWN)))

    def observe(self, rows: Iterable[T], as_run: Callable[[Any], Mapping[str, Any]] = dict) -> Iterator[T]:
        """Yield `rows` unchanged, and take figures of them. `as_run`: a row under the names that a run's rows have;
        only what a run made knows its reference and feature."""
        for at, row in enumerate(rows):
            texts = as_run(row)
            for name, counts in (("feature", self.features), ("reference", self.references)):
                if name in texts:
                    counts[texts[name]] += 1
            if at == 0 or at in self._chosen:
                drawn = DrawnRow(**{name: str(texts.get(name) or "") for name in _TEXTS})
                self.first = self.first or drawn
                if at in self._chosen:
                    self.drawn.append(drawn)
            yield row

    def figures(self) -> Mapping[str, float | None]:
        """Lengths and diversity by name (`metrics.figures`): those figures that need no model."""
        from refed_dspy.plugins.metrics.figures import Tools, figures

        pairs = [(row.instruction, row.improved_response) for row in self.drawn]
        return {name: value for name, value in figures(pairs, Tools()).items() if name != "rows"}

    @cached_property
    def copied(self) -> Copied:
        """How many of the drawn rows hold text of their reference."""
        return count_copied(self.drawn, self.texts)

    @cached_property
    def changes(self) -> Changes | None:
        """Of the rows that have both responses; None where none was drawn."""
        from rapidfuzz.distance import Indel

        from refed_dspy.plugins.metrics.wording import words

        rows = [row for row in self.drawn if row.response]
        if not rows:
            return None
        same = [row.response.strip() == row.improved_response.strip() for row in rows]
        changed = [
            0.0 if unchanged else Indel.normalized_distance(words(row.response), words(row.improved_response))
            for unchanged, row in zip(same, rows, strict=True)
        ]
        return Changes(sum(same), float(median(changed)))

    def rows_per_reference(self) -> tuple[int, float, int]:
        """The fewest, the median and the most rows that a reference gave, of those that gave any."""
        counts = list(self.references.values())
        return min(counts), median(counts), max(counts)

    def languages(self) -> list[str]:
        """ISO 639 codes of the languages of at least a twentieth of the rows, most frequent first, as far as they can
        be recognised from the responses of up to 300 rows."""
        counts: Counter[str] = Counter()
        detector = _detector()
        for row in random.Random(0).sample(self.drawn, min(len(self.drawn), _LANGUAGE_ROWS)):
            likeliest = detector.likeliest(row.improved_response)
            if likeliest and likeliest[1] >= _MIN_PROBABILITY:
                counts[likeliest[0]] += 1
        least = _MIN_SHARE * sum(counts.values())
        return [code for code, count in counts.most_common() if count >= least]


@lru_cache(maxsize=1)
def _detector() -> Language:
    """Says which language a text is in. Unpacking its model takes half a second."""
    from refed_dspy.filters.language import Language

    return Language()


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
