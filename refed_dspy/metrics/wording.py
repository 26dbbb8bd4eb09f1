"""Lengths and lexical diversity of a data set: words and characters a text, vocabulary, and distinct-n."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refed_dspy.errors import ConfigError

SAMPLE_TOKENS = 10_000
"""Words in the sample of distinct-n: about a hundred answers."""

# Ideographs and kana are written without spaces: each counts as a word.
_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f])")


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of `count` numbers; `p5` and `p95` are percentiles, interpolated between neighbours."""

    count: int
    mean: float
    median: float
    p5: float
    p95: float
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a data set's texts are: the spread of one number a text."""

    words: Spread
    characters: Spread


@dataclass(frozen=True, slots=True)
class Distinct:
    """Distinct-n (Li et al., arXiv 1510.03055): distinct n-grams over all n-grams, none across two texts."""

    n: int
    distinct: int
    total: int
    sampled: float | None
    """The ratio over the sample, comparable between data sets of different sizes. None for a smaller data set."""

    @property
    def ratio(self) -> float | None:
        """Over the whole data set, in (0, 1]; falls as a data set grows. None where there is no n-gram."""
        return self.distinct / self.total if self.total else None


@dataclass(frozen=True, slots=True)
class LexicalDiversity:
    """`words` in all, `vocabulary` different ones, and a Distinct for each n."""

    words: int
    vocabulary: int
    distinct: tuple[Distinct, ...]


def words(text: str) -> list[str]:
    """The words of `text` in order, compared without case.

    A word is a run of letters, digits, underscores and the marks that belong to letters; an ideograph or a kana is a
    word by itself. In other scripts without spaces between words (Thai, say) a run is one word.
    """
    folded = text.casefold()
    if _UNSPACED.search(folded):
        folded = _UNSPACED.sub(r" \1 ", folded)
    return _pattern().findall(folded)


def spread(values: ArrayLike) -> Spread | None:
    """The spread of any finite numbers, None where there is none."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if not numbers.size:
        return None
    p5, median, p95 = np.percentile(numbers, (5, 50, 95)).tolist()
    return Spread(
        numbers.size, float(numbers.mean()), median, p5, p95, float(numbers.min()), float(numbers.max())
    )  # fmt: skip


def lengths(texts: Iterable[str]) -> Lengths | None:
    """How long the texts are in words (see `words`) and characters, None where there is no text."""
    counted = np.array([(len(words(text)), len(text)) for text in texts], dtype=np.int64).reshape(-1, 2)
    by_words, by_characters = spread(counted[:, 0]), spread(counted[:, 1])
    return Lengths(by_words, by_characters) if by_words and by_characters else None


def lexical_diversity(
    texts: Sequence[str], *, sizes: Sequence[int] = (1, 2, 3), sample: int = SAMPLE_TOKENS, seed: int = 0
) -> LexicalDiversity:
    """Vocabulary and distinct-n of the texts, for each n of `sizes`.

    Distinct-n falls with the amount of text alone, so it is also computed over a sample of a fixed number of words:
    texts in an order drawn by `seed` until there are `sample` words, the last text cut there. Each text becomes an
    array of 4 bytes a word; counting sorts 8 bytes a word.

    Raises ConfigError for an n or a `sample` below 1.
    """
    if min(*sizes, sample) < 1:
        raise ConfigError("the n of distinct-n and its sample must be 1 or more")
    numbers: dict[str, int] = {}
    coded = [_coded(text, numbers) for text in texts]
    total = sum(map(len, coded))
    drawn = _drawn(coded, sample, seed) if total >= sample else None
    distinct = []
    for n in sizes:
        different, count = _grams(coded, n)
        sampled_different, sampled_count = _grams(drawn, n) if drawn is not None else (0, 0)
        ratio = sampled_different / sampled_count if sampled_count else None
        distinct.append(Distinct(n, different, count, ratio))
    return LexicalDiversity(total, len(numbers), tuple(distinct))


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    # Python's \w leaves out vowel signs and accents that follow their letter, which would cut Hindi words in two. With
    # marks beyond the first 65,536 characters (of a few historic scripts) the pattern is ten times slower.
    marks = "".join(sign for sign in map(chr, range(0x300, 0x10000)) if unicodedata.category(sign)[0] == "M")
    return re.compile(rf"[\w{marks}]+")


def _coded(text: str, numbers: dict[str, int]) -> NDArray[np.uint32]:
    """The words of `text` as numbers; new words are added to `numbers`."""
    return np.array([numbers.setdefault(word, len(numbers)) for word in words(text)], dtype=np.uint32)


def _drawn(coded: Sequence[NDArray[np.uint32]], size: int, seed: int) -> list[NDArray[np.uint32]]:
    """Texts in random order, `size` words of them in all."""
    order = list(range(len(coded)))
    random.Random(seed).shuffle(order)
    chosen: list[NDArray[np.uint32]] = []
    for index in order:
        text = coded[index][:size]
        chosen.append(text)
        size -= len(text)
        if not size:
            break
    return chosen


def _grams(coded: Sequence[NDArray[np.uint32]], n: int) -> tuple[int, int]:
    """(how many different n-grams the texts have, how many in all)."""
    long_enough = [text for text in coded if len(text) >= n]
    if not long_enough:
        return 0, 0
    flat = np.concatenate(long_enough).astype(np.int64)
    starts = np.ones(len(flat), dtype=bool)
    for end in np.cumsum([len(text) for text in long_enough]).tolist():
        starts[end - n + 1 : end] = False  # an n-gram from there would reach into the next text
    codes, base = flat, int(flat.max()) + 1
    for step in range(1, n):
        # Ranks keep the codes small: a rank and a word always fit into 63 bits together, for any n.
        ranks = np.unique(codes, return_inverse=True)[1].ravel() if step > 1 else codes
        codes = ranks[:-1] * base + flat[step:]
    codes = codes[starts[: len(codes)]]
    return len(np.unique(codes)), len(codes)
