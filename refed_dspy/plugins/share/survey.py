"""Figures of the rows for the card: length and variety, origin, what the improvement changed, text copied from the
references, language."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from statistics import median
from typing import TYPE_CHECKING, Any

from refed_dspy.data.dataset import RowsOnDisk
from refed_dspy.plugins.share.copied import Copied, DrawnRow, count_copied
from refed_dspy.records import DataRow

if TYPE_CHECKING:
    from refed_dspy.filters.language import Language

MAX_DRAWN = 10_000
"""Rows that figures are computed of, at most."""
_TEXTS = ["reference", "instruction", "response", "improved_response"]
_LANGUAGE_ROWS = 300
_MIN_PROBABILITY = 0.8
"""A row's language counts as recognised from this probability on."""
_MIN_SHARE = 0.05
"""A language is named from this share of the rows on."""


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
    pairs: list[tuple[str, str]] = field(default_factory=list)
    drawn: list[DrawnRow] = field(default_factory=list)
    """The drawn rows; `pairs` are their instructions and improved responses."""
    first: DrawnRow | None = None
    columns: Sequence[str] = ()
    """The names of the columns of a filtering's or a recycling's rows."""
    _seen: int = 0

    def __post_init__(self) -> None:
        self._chosen = frozenset(random.Random(0).sample(range(self.rows), min(self.rows, MAX_DRAWN)))

    def observe(self, tables: Iterable[Any]) -> Iterator[Any]:
        """Yield `tables` unchanged, and take figures of them."""
        import pyarrow as pa

        for table in tables:
            self.features.update(table["feature"].to_pylist())
            self.references.update(table["reference"].to_pylist())
            drawn = [at for at in range(table.num_rows) if self._seen + at in self._chosen]
            texts = table.select(_TEXTS)
            if self.first is None and table.num_rows:
                self.first = DrawnRow(**texts.slice(0, 1).to_pylist()[0])
            rows = [DrawnRow(**row) for row in texts.take(pa.array(drawn, pa.int64())).to_pylist()]
            self.drawn += rows
            self.pairs += [(row.instruction, row.improved_response) for row in rows]
            self._seen += table.num_rows
            yield table

    def note(self, rows: RowsOnDisk) -> None:
        """Take figures of all `rows` of a filtering or a recycling; only those of a run know their reference."""
        columns: dict[str, None] = {}
        for row in rows:
            columns.update(dict.fromkeys(row.fields))
            for name, counts in (("feature", self.features), ("reference", self.references)):
                if name in row.fields:
                    counts[row.fields[name]] += 1
        self.columns = [*columns]
        self.first = _drawn(rows[0])
        self.drawn = [_drawn(rows[at]) for at in sorted(self._chosen)]
        self.pairs = [(row.instruction, row.improved_response) for row in self.drawn]

    def figures(self) -> Mapping[str, float | None]:
        """Lengths and diversity by name (`metrics.figures`): those figures that need no model."""
        from refed_dspy.plugins.metrics.figures import Tools, figures

        return {name: value for name, value in figures(self.pairs, Tools()).items() if name != "rows"}

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
        for _, response in random.Random(0).sample(self.pairs, min(len(self.pairs), _LANGUAGE_ROWS)):
            likeliest = detector.likeliest(response)
            if likeliest and likeliest[1] >= _MIN_PROBABILITY:
                counts[likeliest[0]] += 1
        least = _MIN_SHARE * sum(counts.values())
        return [code for code, count in counts.most_common() if count >= least]


def _drawn(row: DataRow) -> DrawnRow:
    from refed_dspy.data.sources import as_trained

    response = as_trained(row)["response"] or ""
    return DrawnRow(str(row.fields.get("reference", "")), row.instruction, response, row.response)


@lru_cache(maxsize=1)
def _detector() -> Language:
    """Says which language a text is in. Unpacking its model takes half a second."""
    from refed_dspy.filters.language import Language

    return Language()
