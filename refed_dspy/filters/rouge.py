"""A filter by ROUGE-L: keeps an instruction if its highest ROUGE-L F against those kept so far is below a threshold.

This is the selection of Self-Instruct (Wang et al. 2023, arXiv 2212.10560), which keeps below 0.7, and a filter that
reference-level feedback is compared with. An F that equals the threshold drops. Every decision is that of the package
`rouge-score`, `RougeScorer(["rougeL"], use_stemmer=False)`, on the same texts in the same order; it makes no difference
which of two texts is the package's target and which its prediction. A text without a token (nothing of a-z and 0-9: in
another script, say) has an F of 0 with every text, so it is always kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from refed_dspy.filters.base import Decision, TextFilter, preview
from refed_dspy.metrics.rouge import Alphabet, Feature, Index, features_of, tokens
from refed_dspy.records import DataRow

THRESHOLD = 0.7
COUNTED = 50_000
"""At most so many texts are read to tell common words from rare ones."""


@dataclass(frozen=True, slots=True)
class Match:
    """What became of one text.

    Of a dropped text, `score` is the highest F against the texts kept before it, and `like` the place, counted from 0,
    of the first text that has it. `visited` is false for the texts left once enough were kept.
    """

    kept: bool
    visited: bool = True
    score: float | None = None
    like: int | None = None


KEPT, NOT_VISITED = Match(True), Match(False, visited=False)


def select(texts: Sequence[str], threshold: float = THRESHOLD, target: int | None = None) -> list[Match]:
    """A Match for each text, in order. Texts are visited in order until `target` are kept (None: all are visited).

    `threshold`: above 0, at most 1."""
    index = Index(threshold)
    common: Counter[Feature] = Counter()
    for text in texts[:: len(texts) // COUNTED + 1]:
        common.update(features_of(tokens(text)))
    alphabet = Alphabet(feature for feature, _ in common.most_common())
    del common
    kept: list[int] = []
    matches: list[Match] = []
    for place, text in enumerate(texts):
        if len(kept) == target:
            break
        encoded = alphabet.encode(text)
        nearest = index.nearest(encoded)
        if nearest is None:
            index.add(encoded)
            kept.append(place)
            matches.append(KEPT)
        else:
            matches.append(Match(False, score=nearest[1], like=kept[nearest[0]]))
    return matches + [NOT_VISITED] * (len(texts) - len(matches))


class RougeFilter(TextFilter):
    """`select`, one row at a time: the same rows in the same order get the same decisions. Looks at instructions only.

    The more rows are kept, the longer a check takes: at 10,000 a fraction of a millisecond, about two if all of them
    are made of the same words. Not safe for several threads.
    """

    name = "rouge"
    of_instruction = True

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._index = Index(threshold)
        self._alphabet = Alphabet()
        self._previews: list[str] = []

    def check(self, row: DataRow) -> Decision:
        """Kept, and remembered; or dropped with the highest F and the beginning of the kept text that has it."""
        encoded = self._alphabet.encode(row.instruction)
        nearest = self._index.nearest(encoded)
        if nearest is not None:
            return Decision(False, "like a kept one", nearest[1], self._previews[nearest[0]])
        self._index.add(encoded)
        self._previews.append(preview(row.instruction))
        return Decision(True)

    def remember(self, row: DataRow) -> None:
        self._index.add(self._alphabet.encode(row.instruction))
        self._previews.append(preview(row.instruction))
