"""ROUGE-L selection: keep an instruction if its highest ROUGE-L F against those kept so far is below a threshold.

The selection of Self-Instruct (Wang et al. 2023, arXiv 2212.10560), which keeps below 0.7, and a filter that reference-
level feedback is compared with. An F that equals the threshold drops. Every decision is that of the package
`rouge-score`, `RougeScorer(["rougeL"], use_stemmer=False)`, on the same texts in the same order; the new text being its
target and the kept one its prediction or the other way round makes no difference. A text without a token (nothing of
a-z and 0-9: another script, say) has an F of 0 with every text, so it is always kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.filters.base import Decision
from refed_dspy.metrics.rouge import Feature, Index, Words, counted, f_measure, lcs, token_counts, tokens
from refed_dspy.records import DataRow

THRESHOLD = 0.7
SHOWN = 80


@dataclass(frozen=True, slots=True)
class Match:
    """What became of one text. A dropped one has the highest F against the texts kept before it as `score`, and as
    `like` the place, counted from 0, of the first text that has it. `visited` is false once enough were kept."""

    kept: bool
    visited: bool = True
    score: float | None = None
    like: int | None = None


KEPT, NOT_VISITED = Match(True), Match(False, visited=False)


def select(texts: Sequence[str], threshold: float = THRESHOLD, target: int | None = None) -> list[Match]:
    """What becomes of each text, gone through in the order given until `target` are kept (None: to the end): as many
    as `texts`. ConfigError for a threshold that is not above 0 and at most 1, or a target below 0."""
    if target is not None and target < 0:
        raise ConfigError(f"A target of {target} texts cannot be kept: give 0 or more, or none at all.")
    index = Index(_checked(threshold))
    common: Counter[Feature] = Counter()
    for text in texts:
        common.update(counted(tokens(text)))
    words = Words(feature for feature, _ in common.most_common())
    del common
    kept: list[int] = []
    matches: list[Match] = []
    for place, text in enumerate(texts):
        if len(kept) == target:
            break
        coded = words.code(text)
        near = index.nearest(coded)
        if near is None:
            index.add(coded)
            kept.append(place)
            matches.append(KEPT)
        else:
            matches.append(Match(False, score=near[1], like=kept[near[0]]))
    return matches + [NOT_VISITED] * (len(texts) - len(matches))


class RougeFilter:
    """`select`, one row at a time: the same rows in the same order are decided alike. Takes and checks instructions.

    A row takes the longer the more are kept: at 10,000 a fraction of a millisecond, about two if all of them are made
    of the same words. Not for several threads at once. ConfigError as for `select`.
    """

    name = "rouge"
    of_instruction = True

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._index = Index(_checked(threshold))
        self._words = Words()
        self._shown: list[str] = []

    def check(self, row: DataRow) -> Decision:
        """Kept, and remembered; or dropped with the highest F and the beginning of the kept text that has it."""
        coded = self._words.code(row.instruction)
        near = self._index.nearest(coded)
        if near is not None:
            return Decision(False, "like a kept one", near[1], self._shown[near[0]])
        self._index.add(coded)
        self._shown.append(beginning(row.instruction))
        return Decision(True)

    def remember(self, row: DataRow) -> None:
        self._index.add(self._words.code(row.instruction))
        self._shown.append(beginning(row.instruction))


def beginning(text: str) -> str:
    """On one line, at most 80 characters."""
    return one_line(text[: 5 * SHOWN], SHOWN)


def rouge_l(one: str, other: str) -> float:
    """The ROUGE-L F of two texts, 0 to 1: the very float of `rouge-score`, in either order."""
    words = Words()
    first, second = words.code(one).codes, words.code(other).codes
    return float(f_measure(lcs(first, [second]), len(first), token_counts([second]))[0])


def _checked(threshold: float) -> float:
    if not 0 < threshold <= 1:
        raise ConfigError(f"A ROUGE-L threshold of {threshold} is out of range: give one above 0 and at most 1.")
    return threshold
