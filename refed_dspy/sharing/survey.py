"""What the rows themselves tell for the card: how long and how varied they are, whence they come, what the improvement
changed, what is their references' own text, in which language."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from statistics import median
from typing import TYPE_CHECKING, Any

from refed_dspy.records import DataRow
from refed_dspy.sharing.copied import Copied, DrawnRow, copied

if TYPE_CHECKING:
    from refed_dspy.filters.language import Language

MOST = 10_000
"""Rows that figures are taken of."""
_TEXTS = ["reference", "instruction", "response", "improved_response"]
_FOR_LANGUAGE = 300
_DECIDED = 0.8
"""From this probability on a row's language counts as told."""
_SHARE = 0.05
"""A language is named from this share of the rows on."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What the improvement did: `same` rows it left as they were; `median`: the share of words changed, over all rows
    (words taken out and words put in, over the words of both texts; 0 to 1)."""

    same: int
    median: float


@dataclass
class Survey:
    """Looks at `rows` rows as they pass. Figures are of MOST of them at most, drawn by a fixed seed."""

    rows: int
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Reference's id → its texts."""
    features: Counter[str] = field(default_factory=Counter)
    references: Counter[str] = field(default_factory=Counter)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    drawn: list[DrawnRow] = field(default_factory=list)
    """The rows of `pairs`."""
    first: DrawnRow | None = None
    _seen: int = 0

    def __post_init__(self) -> None:
        chosen = random.Random(0).sample(range(self.rows), min(self.rows, MOST))
        self._chosen = frozenset(chosen)

    def of(self, tables: Iterable[Any]) -> Iterator[Any]:
        """`tables` as they are, looked at."""
        for table in tables:
            self.features.update(table["feature"].to_pylist())
            self.references.update(table["reference"].to_pylist())
            places = [at for at in range(table.num_rows) if self._seen + at in self._chosen]
            told = table.select(_TEXTS)
            if self.first is None and table.num_rows:
                self.first = DrawnRow(**told.slice(0, 1).to_pylist()[0])
            some = [DrawnRow(**row) for row in told.take(places).to_pylist()]
            self.drawn += some
            self.pairs += [(row.instruction, row.improved_response) for row in some]
            self._seen += table.num_rows
            yield table

    def figures(self) -> Mapping[str, float | None]:
        """Lengths and wording by name (`measures.figures`): those that need no model."""
        from refed_dspy.metrics.figures import Tools, figures

        return {name: value for name, value in figures(self.pairs, Tools()).items() if name != "rows"}

    @cached_property
    def copied(self) -> Copied:
        """How many of the rows looked at hold their own reference's text."""
        return copied(self.drawn, self.texts)

    @cached_property
    def changes(self) -> Changes | None:
        """None where no row was looked at."""
        from rapidfuzz.distance import Indel

        from refed_dspy.metrics.wording import words

        if not self.drawn:
            return None
        same = [row.response.strip() == row.improved_response.strip() for row in self.drawn]
        shares = [
            0.0 if left else Indel.normalized_distance(words(row.response), words(row.improved_response))
            for left, row in zip(same, self.drawn, strict=True)
        ]
        return Changes(sum(same), float(median(shares)))

    def rows_a_reference(self) -> tuple[int, float, int]:
        """The fewest, the median and the most rows that a reference gave, of those that gave any."""
        counts = list(self.references.values())
        return min(counts), median(counts), max(counts)

    def languages(self) -> list[str]:
        """ISO 639 codes of the languages that a twentieth of the rows or more are in, commonest first, as far as it can
        be told: of up to 300 rows, by their responses."""
        told: Counter[str] = Counter()
        detector = _detector()
        for instruction, response in random.Random(0).sample(self.pairs, min(len(self.pairs), _FOR_LANGUAGE)):
            found = detector.check(DataRow(0, instruction, response))
            if found.score is not None and found.score >= _DECIDED:
                told[found.detail] += 1
        least = _SHARE * sum(told.values())
        return [code for code, count in told.most_common() if count >= least]


@lru_cache(maxsize=1)
def _detector() -> Language:
    """It lets every language pass, and says which it was. To unpack its model takes half a second."""
    from refed_dspy.filters.language import CODES, Language

    return Language(CODES, of="response")
